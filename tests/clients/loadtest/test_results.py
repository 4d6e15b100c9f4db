"""The result of a run, from requests made by hand."""

import asyncio
from array import array
from typing import Any

import pytest

from clients.loadtest.generator import Span
from clients.loadtest.monitor import TICK_SECONDS, Monitor, waits
from clients.loadtest.options import Load
from clients.loadtest.records import RequestRecord
from clients.loadtest.results import run_result
from clients.loadtest.targets import Target


def request(
    intended: float, *times: float, late: float = 0.0, output: int | None = None, error: str = ""
) -> RequestRecord:
    """A request with its tokens at these times, over with the last one."""
    record = RequestRecord(0, 0, 64, intended=intended, sent=intended + late)
    record.token_times, record.ended = array("d", times), max([record.sent, *times])
    record.last_token, record.error = record.ended, error or None
    record.output_tokens = len(times) if output is None else output
    record.prompt_tokens = 10
    return record


def result(*records: RequestRecord, span: Span, targets: Any = (), now: float = 9.0) -> Any:
    monitor = Monitor(lambda: 0.0)
    return run_result(Load("rate", 1.0), list(records), span, targets, monitor, now)


def test_a_request_counts_if_it_should_have_been_sent_inside_the_span() -> None:
    records = [request(t, t + 0.5) for t in (0.0, 1.99, 2.0, 5.99, 6.0)]
    made = result(*records, span=Span(2.0, 4.0))
    assert (made["requests"]["measured"], made["requests"]["not_measured"]) == (2, 3)
    assert made["latency"]["ttft"]["count"] == 2
    assert made["window"] == {"start": 2.0, "end": 6.0, "seconds": 4.0}


def test_tokens_count_for_the_moment_they_arrive_in() -> None:
    # One request of the warm-up and one that outlives the window, with two tokens in each event.
    records = [request(1, 1.5, 2.5, 3.5, output=6), request(5, 5.5, 6.5, 7.5, output=6)]
    made = result(*records, span=Span(2.0, 4.0))
    assert made["throughput"]["output_tokens_per_second"] == pytest.approx((4 + 2) / 4)
    assert made["throughput"]["requests_per_second"] == pytest.approx(1 / 4)
    assert made["throughput"]["prompt_tokens_per_second"] == pytest.approx(10 / 4)


def test_a_number_of_requests_is_measured_until_the_last_one_ends() -> None:
    records = [request(0, 1.0), request(1, 2.0, 4.0)]
    made = result(*records, span=Span(0.0, float("inf"), 2))
    assert made["window"]["seconds"] == 4.0
    assert made["throughput"]["requests_per_second"] == 0.5


def test_concurrency_is_averaged_over_time() -> None:
    records = [request(0, 3.0), request(1, 2.0), request(2, 4.0)]
    made = result(*records, span=Span(0.0, 4.0))
    assert made["concurrency"] == {"mean": (3 + 1 + 2) / 4, "max": 2}


def test_failures_and_the_slow_are_not_good() -> None:
    records = [
        request(0, 0.1, 0.2),
        request(1, 1.5, 1.6),
        request(2, 2.1, 2.9),
        request(3, 3.05, error="cut"),
    ]
    targets = (Target("ttft", 0.2), Target("itl", 0.5))
    goodput = result(*records, span=Span(0.0, 4.0), targets=targets)["goodput"]
    assert goodput["met"] == {"ttft": 2, "itl": 2}
    assert (goodput["requests"], goodput["share"]) == (1, 0.25)
    assert goodput["requests_per_second"] == 0.25


def test_a_late_request_is_slow_for_its_user_and_not_for_the_server() -> None:
    made = result(request(1, 2.0, late=0.6), span=Span(0.0, 4.0))
    assert made["latency"]["ttft"]["max"] == pytest.approx(1.0)
    assert made["latency_from_send"]["ttft"]["max"] == pytest.approx(0.4)
    assert made["latency_from_send"]["e2e"]["max"] == pytest.approx(0.4)
    [warning] = made["generator"]["warnings"]
    assert "600 ms late" in warning


def test_what_was_cancelled_is_no_failure() -> None:
    records = [request(0, 0.5), request(1, 1.2, error="cancelled"), request(2, 2.2, error="cut")]
    requests = result(*records, span=Span(0.0, 4.0))["requests"]
    assert (requests["measured"], requests["failed"], requests["error_rate"]) == (2, 1, 0.5)
    assert list(requests["errors"]) == ["cut"]


def test_a_run_in_which_nothing_happened_has_a_result() -> None:
    made = result(span=Span(1.0, 4.0), targets=[Target("ttft", 1.0)])
    assert made["latency"] == {"ttft": None, "itl": None, "tpot": None, "e2e": None}
    assert made["goodput"]["share"] == 0.0
    assert made["requests"]["error_rate"] == 0.0


def test_a_server_without_usage_has_its_events_counted() -> None:
    made = result(request(0, 1.0, 2.0, 3.0, output=-1), span=Span(0.0, 4.0))
    assert made["tokens"]["output"]["mean"] == 3
    assert made["tokens"]["are_counted"] is False
    assert made["latency"]["tpot"]["mean"] == 1.0


async def test_a_load_tester_that_is_held_up_says_so() -> None:
    loop = asyncio.get_running_loop()
    start = loop.time()
    monitor = Monitor(lambda: loop.time() - start)
    watching = asyncio.ensure_future(monitor.watch())
    # Spends all its time computing, in stretches of 50 ms.
    while loop.time() < start + 0.5:
        await asyncio.sleep(0)
        until = loop.time() + 0.05
        while loop.time() < until:
            pass
    watching.cancel()
    facts = monitor.facts(0.0, 1.0, [])
    assert facts["loop_lag"]["p50"] > 0.03
    assert any("ran late" in warning for warning in facts["warnings"])


def test_a_stall_counts_for_as_long_as_it_lasted() -> None:
    # 100 samples on time and one late by 100 ticks: half of the time was spent standing still.
    lags = sorted(waits([0.0] * 100 + [100 * TICK_SECONDS]))
    assert 200 <= len(lags) <= 201
    assert lags[150] == pytest.approx(50 * TICK_SECONDS, rel=0.03)
    assert lags[-1] == 100 * TICK_SECONDS
