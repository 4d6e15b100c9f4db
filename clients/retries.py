"""Whether and when a request that failed is sent again."""

from dataclasses import dataclass

from clients.errors import APIError, ClientError, ServerUnreachableError

RETRIED_STATUSES = frozenset({408, 429, 502, 503, 504})
"""What a server or a gateway before it says when it is busy, away or late. Not 500: what made a
server fail once would, as a rule, make it fail again."""


@dataclass(frozen=True, slots=True)
class Retries:
    """Retries with exponential back-off and jitter.

    Sent again is what was refused with one of `RETRIED_STATUSES`, and what failed before a byte of
    the answer came: nothing of it can have been seen, and no request changes anything on the
    server. What failed later never is.

    Args:
        max_retries: Attempts after the first; 0 turns retries off.
        base_seconds: The longest pause before the first retry; it doubles with every one.
        max_seconds: The longest pause, where the server did not ask for another.
        max_retry_after_seconds: If the server asks for a longer pause than this, the error is
            raised instead: to come back earlier would not be what it asked for.
    """

    max_retries: int = 2
    base_seconds: float = 0.5
    max_seconds: float = 8.0
    max_retry_after_seconds: float = 60.0

    def pause(self, num_retries: int, error: ClientError, jitter: float) -> float | None:
        """Seconds to wait before the next attempt; None if there is to be none.

        Args:
            num_retries: How many there were.
            jitter: A random number from 0 to 1, so that clients that failed together do not come
                back together.
        """
        if num_retries >= self.max_retries or not is_worth_a_retry(error):
            return None
        longest = min(self.base_seconds * 2.0**num_retries, self.max_seconds)
        asked = getattr(error, "retry_after_seconds", None)
        if asked is None:
            return longest * (0.5 + jitter / 2)
        return asked + longest * jitter / 2 if asked <= self.max_retry_after_seconds else None


DEFAULT_RETRIES = Retries()


def is_worth_a_retry(error: ClientError) -> bool:
    if isinstance(error, APIError):
        return error.status_code in RETRIED_STATUSES
    return isinstance(error, ServerUnreachableError)
