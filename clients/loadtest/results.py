"""What the requests of one run say, as plain numbers that go into a report."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from clients.loadtest.generator import Span
from clients.loadtest.monitor import Monitor
from clients.loadtest.options import Load
from clients.loadtest.records import RequestRecord
from clients.loadtest.statistics import distribution, summarize, timeline
from clients.loadtest.targets import Target, e2e, gaps, tpot, ttft

LATENCIES: Mapping[str, Callable[[RequestRecord], Iterable[float]]] = {
    "ttft": lambda record: [ttft(record)],
    "itl": gaps,
    "tpot": lambda record: [value] if (value := tpot(record)) is not None else [],
    "e2e": lambda record: [e2e(record)],
}


def run_result(
    load: Load,
    records: Sequence[RequestRecord],
    span: Span,
    targets: Sequence[Target],
    monitor: Monitor,
    now: float,
) -> dict[str, Any]:
    """The result of one run, which is over at `now`. Warm-up and what was cancelled do not count.

    What belongs to a request is counted where the request should have been sent inside the span;
    what belongs to a moment, as tokens per second do, where the moment is inside the window.
    """
    in_span = [r for r in records if span.warmup_seconds <= r.intended < span.end]
    measured = [r for r in in_span if r.error != "cancelled"]
    completed = [r for r in measured if r.error is None]
    end = min(span.end, max((r.ended for r in records), default=now))
    if span.num_requests is None:
        end = min(span.end, now)
    seconds = max(end - span.warmup_seconds, 1e-9)
    samples = {
        name: [value for record in completed for value in latencies(record)]
        for name, latencies in LATENCIES.items()
    }
    return {
        "load": {"kind": load.kind, "value": load.value, "label": load.label},
        "window": {"start": span.warmup_seconds, "end": end, "seconds": seconds},
        "requests": _requests(records, measured),
        "tokens": _tokens(completed),
        "latency": {name: summarize(values) for name, values in samples.items()},
        "latency_from_send": {
            "ttft": summarize(r.first_token - r.sent for r in completed),
            "e2e": summarize(r.last_token - r.sent for r in completed),
        },
        "throughput": _throughput(records, completed, span.warmup_seconds, end),
        "goodput": _goodput(completed, len(measured), targets, seconds),
        "concurrency": _concurrency(records, span.warmup_seconds, end),
        "generator": monitor.facts(span.warmup_seconds, end, measured),
        "distribution": {name: distribution(values) for name, values in samples.items()},
        "timeline": timeline(records, max((r.ended for r in records), default=end)),
    }


def _requests(
    records: Sequence[RequestRecord], measured: Sequence[RequestRecord]
) -> dict[str, Any]:
    errors: dict[str, dict[str, Any]] = {}
    for record in measured:
        if record.error is not None:
            first = {"count": 0, "message": record.error_message}
            errors.setdefault(record.error, first)["count"] += 1
    num_failed = sum(error["count"] for error in errors.values())
    return {
        "measured": len(measured),
        "completed": len(measured) - num_failed,
        "failed": num_failed,
        "not_measured": len(records) - len(measured),
        "error_rate": num_failed / len(measured) if measured else 0.0,
        "errors": errors,
    }


def _tokens(completed: Sequence[RequestRecord]) -> dict[str, Any]:
    num_events = sum(len(record.token_times) for record in completed)
    num_tokens = sum(record.num_output_tokens for record in completed)
    return {
        "prompt": summarize(r.prompt_tokens for r in completed if r.prompt_tokens >= 0),
        "cached": summarize(r.cached_tokens for r in completed if r.cached_tokens >= 0),
        "output": summarize(r.num_output_tokens for r in completed),
        "are_counted": all(record.output_tokens >= 0 for record in completed),
        "per_event": num_tokens / num_events if num_events else None,
    }


def _throughput(
    records: Sequence[RequestRecord], completed: Sequence[RequestRecord], start: float, end: float
) -> dict[str, float]:
    """Rates inside the window. Tokens count for the moment that they arrive in, whoever sent for
    them; prompt tokens and requests for the moment that the request ends in."""
    seconds = max(end - start, 1e-9)
    num_output = 0.0
    for record in records:
        if num_events := len(record.token_times):
            inside = sum(start <= at <= end for at in record.token_times)
            num_output += inside * record.num_output_tokens / num_events
    ended = [r for r in records if r.error is None and start <= r.ended <= end]
    return {
        "output_tokens_per_second": num_output / seconds,
        "prompt_tokens_per_second": sum(max(0, r.prompt_tokens) for r in ended) / seconds,
        "requests_per_second": len(ended) / seconds,
    }


def _goodput(
    completed: Sequence[RequestRecord],
    num_measured: int,
    targets: Sequence[Target],
    seconds: float,
) -> dict[str, Any] | None:
    """Requests per second that met every target. One that failed met none."""
    if not targets:
        return None
    num_good = sum(all(target.is_met(r) for target in targets) for r in completed)
    return {
        "targets": {target.metric: target.seconds for target in targets},
        "met": {t.metric: sum(map(t.is_met, completed)) for t in targets},
        "requests": num_good,
        "share": num_good / num_measured if num_measured else 0.0,
        "requests_per_second": num_good / seconds,
    }


def _concurrency(records: Sequence[RequestRecord], start: float, end: float) -> dict[str, float]:
    """Requests in flight: the mean over the window, and the most at one moment of it."""
    inside = [(max(r.sent, start), min(r.ended, end)) for r in records]
    spans = [(a, b) for a, b in inside if b > a]
    changes = sorted([(a, 1) for a, _ in spans] + [(b, -1) for _, b in spans])
    num_running = most = 0
    for _, change in changes:
        num_running += change
        most = max(most, num_running)
    return {"mean": sum(b - a for a, b in spans) / max(end - start, 1e-9), "max": most}
