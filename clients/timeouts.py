"""How long a client waits, and for what."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import httpx

from clients.errors import LimitName, RequestTimeoutError


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Limits in seconds; None is no limit.

    Args:
        connect: For a connection.
        first_token: Of a streamed answer, from sending the request to its first text.
        between_tokens: Of a streamed answer, from one piece of text to the next.
        total: For the whole call, retries and the pauses before them included.
    """

    connect: float | None = 5.0
    first_token: float | None = 300.0
    between_tokens: float | None = 60.0
    total: float | None = 600.0


DEFAULT_TIMEOUTS = Timeouts()


class Limit(NamedTuple):
    """A moment, on the monotonic clock, by which something must have come."""

    at: float
    name: LimitName
    seconds: float

    def error(self) -> RequestTimeoutError:
        return RequestTimeoutError(self.name, self.seconds)


class Deadlines:
    """The limits of one call that began at `start`."""

    def __init__(self, timeouts: Timeouts, start: float) -> None:
        self._timeouts = timeouts
        self.total = self._limit("total", start)

    def first_token(self, sent: float) -> Limit:
        return min(self.total, self._limit("first_token", sent))

    def next_token(self, since: float) -> Limit:
        return min(self.total, self._limit("between_tokens", since))

    def of_request(self, now: float, *, is_streamed: bool) -> tuple[httpx.Timeout, Limit]:
        """The limits of connecting, sending and waiting for a response, and which one binds."""
        limit = self.first_token(now) if is_streamed else self.total
        connect = min(self._timeouts.connect or math.inf, self.total.at - now)
        return httpx.Timeout(_seconds(limit.at - now), connect=_seconds(connect)), limit

    def _limit(self, name: LimitName, since: float) -> Limit:
        seconds = getattr(self._timeouts, name)
        seconds = math.inf if seconds is None else seconds
        return Limit(since + seconds, name, seconds)


def _seconds(left: float) -> float | None:
    """As httpx takes it, which knows no infinity and no waiting for nothing."""
    return None if left == math.inf else max(left, 0.001)
