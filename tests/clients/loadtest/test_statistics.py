"""Figures against NumPy, and against slow and plain ways to compute them."""

from array import array

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.loadtest.errors import OptionError
from clients.loadtest.records import RequestRecord
from clients.loadtest.specs import parse_seconds
from clients.loadtest.statistics import distribution, quantile, summarize, timeline
from clients.loadtest.targets import Target, e2e, gaps, parse_target, tpot, ttft

SAMPLES = st.lists(st.floats(0, 1e4), min_size=1, max_size=60)


def record(
    sent: float, ended: float, times: list[float], *, output: int = -1, error: str | None = None
) -> RequestRecord:
    made = RequestRecord(0, 0, 64, intended=sent - 0.5, sent=sent, ended=ended)
    made.token_times = array("d", times)
    made.last_token = times[-1] if times else 0.0
    made.output_tokens, made.error = output, error
    return made


@settings(deadline=None)
@given(SAMPLES, st.floats(0, 1))
def test_quantiles_are_numpys(samples: list[float], fraction: float) -> None:
    expected = np.quantile(samples, fraction)
    assert quantile(sorted(samples), fraction) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@settings(deadline=None)
@given(SAMPLES)
def test_a_summary_is_what_numpy_computes(samples: list[float]) -> None:
    summary = summarize(samples)
    assert summary is not None
    expected = {f"p{p}": np.percentile(samples, p) for p in (50, 90, 95, 99)}
    expected |= {"mean": np.mean(samples), "min": min(samples), "max": max(samples)}
    assert summary.pop("count") == len(samples)
    assert summary == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_no_samples_have_no_summary() -> None:
    assert summarize([]) is None
    assert distribution([]) == []


@settings(deadline=None)
@given(SAMPLES)
def test_a_distribution_climbs_from_the_least_to_the_greatest(samples: list[float]) -> None:
    values, fractions = np.array(distribution(samples)).T
    assert (values[0], values[-1]) == (min(samples), max(samples))
    assert (fractions[0], fractions[-1]) == (0, 1)
    assert (np.diff(fractions) > 0).all()
    assert values == pytest.approx(np.quantile(samples, fractions), rel=1e-9, abs=1e-9)


def test_a_timeline_holds_every_request_once_and_every_moment_of_it() -> None:
    rng = np.random.default_rng(1)
    records = []
    for _ in range(50):
        sent = rng.uniform(0, 8)
        times = sorted(rng.uniform(sent, sent + 2, size=7))
        error = "cut" if rng.random() < 0.2 else None
        records.append(record(sent, times[-1] + 0.01, times, output=14, error=error))
    shown = timeline(records, 10.1)
    width = shown["bin_seconds"]
    assert width == 0.1
    assert sum(shown["sent"]) == 50
    assert sum(shown["failed"]) == sum(r.error is not None for r in records)
    assert sum(shown["ended"]) + sum(shown["failed"]) == 50
    assert sum(shown["tokens"]) == pytest.approx(50 * 14)
    in_flight = sum(r.ended - r.sent for r in records)
    assert sum(shown["running"]) * width == pytest.approx(in_flight)
    for i in (0, 13, 57):
        moments = np.linspace(i * width, (i + 1) * width, 2000)
        mean = np.mean([sum(r.sent <= at < r.ended for r in records) for at in moments])
        assert shown["running"][i] == pytest.approx(mean, abs=0.01)
        tokens = 2 * sum(i * width <= t < (i + 1) * width for r in records for t in r.token_times)
        assert shown["tokens"][i] == pytest.approx(tokens)


@pytest.mark.parametrize(("span", "width"), [(0.0, 0.1), (12, 0.1), (12.1, 0.2), (36_000, 300)])
def test_a_long_run_has_wider_bins(span: float, width: float) -> None:
    shown = timeline([record(0, span, [])], span)
    assert shown["bin_seconds"] == width
    assert len(shown["sent"]) <= 120


def test_latencies_count_from_the_planned_time() -> None:
    answer = record(10.0, 12.0, [10.3, 10.4, 10.9], output=3)
    assert ttft(answer) == pytest.approx(0.8)
    assert e2e(answer) == pytest.approx(1.4)
    assert gaps(answer) == pytest.approx([0.1, 0.5])
    assert tpot(answer) == pytest.approx(0.6 / 2)


def test_several_tokens_in_one_event_count_in_tpot_and_not_in_itl() -> None:
    answer = record(10.0, 12.0, [10.3, 10.5, 10.9], output=13)
    assert tpot(answer) == pytest.approx(0.6 / 12)
    assert gaps(answer) == pytest.approx([0.2, 0.4])


def test_an_answer_of_one_token_has_no_tpot() -> None:
    assert tpot(record(0, 2, [1.0], output=1)) is None
    assert tpot(record(0, 2, [], output=0)) is None


@pytest.mark.parametrize(
    ("metric", "least"), [("ttft", 0.8), ("itl", 0.5), ("tpot", 0.3), ("e2e", 1.4)]
)
def test_a_target_is_met_up_to_its_limit(metric: str, least: float) -> None:
    answer = record(10.0, 12.0, [10.3, 10.4, 10.9], output=3)
    assert Target(metric, least + 1e-9).is_met(answer)
    assert not Target(metric, least - 1e-9).is_met(answer)


def test_a_target_is_written_with_its_unit() -> None:
    assert parse_target("ttft=200ms") == Target("ttft", 0.2)
    assert parse_seconds("1.5s") == parse_seconds("1.5") == 1.5
    assert parse_seconds("250us") == pytest.approx(250e-6)


@pytest.mark.parametrize("text", ["ttft", "latency=2s", "ttft=", "itl=fast", "itl=-1s", "e2e=ms"])
def test_a_target_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(OptionError):
        parse_target(text)
