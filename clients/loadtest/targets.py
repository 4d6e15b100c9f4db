"""Latency targets (SLOs), and the latencies of one request that they speak of."""

from dataclasses import dataclass

from clients.loadtest.errors import OptionError
from clients.loadtest.records import RequestRecord
from clients.loadtest.specs import parse_seconds

METRICS = ("ttft", "itl", "tpot", "e2e")


def ttft(record: RequestRecord) -> float:
    """From when the request should have been sent to its first token."""
    return record.first_token - record.intended


def e2e(record: RequestRecord) -> float:
    """From when the request should have been sent to its last token."""
    return record.last_token - record.intended


def tpot(record: RequestRecord) -> float | None:
    """(E2E - TTFT) / (output tokens - 1); None for an answer of one token."""
    num_gaps = record.num_output_tokens - 1
    return (record.last_token - record.first_token) / num_gaps if num_gaps > 0 else None


def gaps(record: RequestRecord) -> list[float]:
    """From each event with text to the next."""
    times = record.token_times
    return [later - earlier for earlier, later in zip(times, times[1:], strict=False)]


@dataclass(frozen=True, slots=True)
class Target:
    """The longest that a latency may be. For `itl` that is the longest gap of a request."""

    metric: str
    seconds: float

    def is_met(self, record: RequestRecord) -> bool:
        """Whether a complete answer met it. A latency that it has not got is no violation."""
        match self.metric:
            case "ttft":
                value: float | None = ttft(record)
            case "e2e":
                value = e2e(record)
            case "tpot":
                value = tpot(record)
            case _:
                value = max(gaps(record), default=None)
        return value is None or value <= self.seconds


def parse_target(text: str) -> Target:
    """A target such as `ttft=200ms`.

    Raises:
        OptionError: the latency is unknown, or the duration is none.
    """
    metric, _, limit = text.partition("=")
    if metric not in METRICS:
        raise OptionError(f"target {text!r} does not begin with one of: {', '.join(METRICS)}.")
    return Target(metric, parse_seconds(limit))
