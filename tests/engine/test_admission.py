"""Who may wait: the quick answer is never another than that of a look at the whole queue."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from dijiang_runtime.engine.admission import AdmissionRate, QueueLimits, check_queue
from dijiang_runtime.errors import EngineOverloadedError

LENGTHS = st.lists(st.integers(1, 60), max_size=12)
LIMITS = st.builds(QueueLimits, st.integers(1, 12), st.integers(0, 200))


@given(LENGTHS, st.integers(1, 500), st.integers(0, 3), LIMITS)
def test_what_surely_fits_fits(
    queued: list[int], length: int, surplus: int, limits: QueueLimits
) -> None:
    if limits.surely_fits(len(queued), sum(queued) + surplus):
        assert limits.fits([*queued, length])


@given(LENGTHS, st.integers(1, 60), LIMITS)
def test_who_is_refused_learns_how_many_must_leave_first(
    queued: list[int], length: int, limits: QueueLimits
) -> None:
    lengths = [*queued, length]
    # The contract, word for word: the fewest whose leaving makes the rest fit.
    num_ahead = next(n for n in range(len(lengths) + 1) if limits.fits(lengths[n:]))
    rate = AdmissionRate()
    rate.seconds = 2.0
    if num_ahead == 0:
        check_queue(queued, length, limits, rate)
        return
    with pytest.raises(EngineOverloadedError) as refusal:
        check_queue(queued, length, limits, rate)
    assert refusal.value.retry_after_seconds == 2.0 * num_ahead
