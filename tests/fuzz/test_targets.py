"""The targets of guided fuzzing hold for their seeds, for what was found, and for much beside."""

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from tests.fuzz.targets import TARGETS

FOUND: dict[str, tuple[bytes, ...]] = {}
"""Inputs that broke a promise once."""

EXAMPLES = {"bodies": 400, "model-files": 60, "detokenisation": 400, "stop-strings": 400}


def test_every_target_is_tried() -> None:
    assert EXAMPLES.keys() == TARGETS.keys() >= FOUND.keys()


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_holds_for_its_seeds_and_for_what_was_found(name: str) -> None:
    target = TARGETS[name]
    for data in (b"", b"\0", *target.seeds(), *FOUND.get(name, ())):
        target.run(data)


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_holds_for_damaged_seeds(name: str) -> None:
    target = TARGETS[name]

    @given(st.sampled_from(target.seeds()), st.data())
    @settings(max_examples=EXAMPLES[name], deadline=None)
    def holds(seed: bytes, data: st.DataObject) -> None:
        start = data.draw(st.integers(0, min(len(seed), 2000)))
        end = data.draw(st.integers(start, start + 8))
        target.run(seed[:start] + data.draw(st.binary(max_size=8)) + seed[end:])

    holds()
