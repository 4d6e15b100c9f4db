"""Arrival processes against their theory. Seeds are fixed, so nothing here is a matter of luck."""

import itertools
from random import Random

import numpy as np
import pytest
from scipy import stats

from clients.loadtest.arrivals import parse_arrivals
from clients.loadtest.errors import OptionError

SPECS = ["poisson", "constant", "bursty:0.5", "bursty:3", "onoff:0.5,1.5", "ramp:1"]
NUM = 20_000


def offsets(
    spec: str, rate: float = 8.0, *, num: int = NUM, span: float = 100.0, seed: int = 1
) -> np.ndarray:
    endless = parse_arrivals(spec).offsets(rate, span, Random(seed))
    return np.array(list(itertools.islice(endless, num)))


@pytest.mark.parametrize("spec", SPECS)
def test_offsets_never_go_back(spec: str) -> None:
    times = offsets(spec)
    assert times[0] >= 0
    assert (np.diff(times) >= 0).all()


@pytest.mark.parametrize("spec", [spec for spec in SPECS if not spec.startswith("ramp")])
@pytest.mark.parametrize("rate", [0.5, 8.0])
def test_every_process_has_the_rate_that_was_asked_for(spec: str, rate: float) -> None:
    times = offsets(spec, rate)
    # Of NUM gaps with a variation of 3, the mean has a standard error of 2 %.
    assert len(times) / times[-1] == pytest.approx(rate, rel=0.05)


def test_poisson_gaps_are_exponential() -> None:
    gaps = np.diff(offsets("poisson", 8.0))
    assert stats.kstest(gaps, stats.expon(scale=1 / 8).cdf).pvalue > 0.01


@pytest.mark.parametrize("variation", [0.5, 1.0, 3.0])
def test_bursty_gaps_are_gamma_with_the_variation_that_was_asked_for(variation: float) -> None:
    gaps = np.diff(offsets(f"bursty:{variation}", 8.0))
    # With this heavy a tail, the deviation itself has a standard error of 3 %.
    assert np.std(gaps) / np.mean(gaps) == pytest.approx(variation, rel=0.1)
    shape = 1 / variation**2
    theory = stats.gamma(shape, scale=1 / 8 / shape)
    # Not the whole distribution: the least gaps are lost where offsets are rounded.
    for fraction in (0.3, 0.5, 0.7, 0.9, 0.99):
        assert np.mean(gaps <= theory.ppf(fraction)) == pytest.approx(fraction, abs=0.012)


def test_constant_gaps_are_equal_however_long_it_runs() -> None:
    assert offsets("constant", 8.0) == pytest.approx(np.arange(NUM) / 8, abs=0)


def test_nothing_arrives_while_it_is_off_and_arrivals_while_it_is_on_are_even() -> None:
    within = offsets("onoff:0.5,1.5", 8.0) % 2.0
    assert within.max() <= 0.5
    assert stats.kstest(within, stats.uniform(0, 0.5).cdf).pvalue > 0.01


def test_a_ramp_follows_its_slope() -> None:
    """The number of arrivals expected by each arrival is a Poisson process of rate 1."""
    start, rate, span = 2.0, 10.0, 1000.0
    times = offsets(f"ramp:{start:g}", rate, span=span, num=8000)
    climbing = np.minimum(times, span)
    expected = start * climbing + (rate - start) / 2 / span * climbing**2
    expected += rate * (times - climbing)
    assert times[-1] > span
    assert stats.kstest(np.diff(expected), stats.expon.cdf).pvalue > 0.01


def test_a_ramp_may_begin_at_nothing_and_may_fall() -> None:
    assert (offsets("ramp:0", 10.0, num=200) > 0).all()
    falling = offsets("ramp:20", 2.0, span=100.0, num=1100)
    assert (falling < 50).sum() == pytest.approx(20 * 50 - 0.09 * 50**2, rel=0.1)


@pytest.mark.parametrize("spec", SPECS[:1] + SPECS[2:])
def test_a_seed_gives_the_same_plan(spec: str) -> None:
    assert (offsets(spec, num=50) == offsets(spec, num=50)).all()
    assert (offsets(spec, num=50) != offsets(spec, num=50, seed=2)).any()


@pytest.mark.parametrize(
    "spec", ["", "often", "poisson:2", "bursty", "bursty:0", "bursty:x", "onoff:1", "ramp:nan"]
)
def test_a_process_that_makes_no_sense_is_refused(spec: str) -> None:
    with pytest.raises(OptionError):
        parse_arrivals(spec)
