"""How much of the server one API key may have at once."""

import time
from collections import Counter

from starlette.types import ASGIApp, Receive, Scope, Send

from server.errors import KeyLimitError, error_response
from server.metrics import GENERATION_PATHS, Metrics
from server.middleware import record_of

FIRST_GUESS_SECONDS = 1.0
WEIGHT_OF_NEWEST = 0.2


class KeyLimitMiddleware:
    """Refuses a key's requests for text beyond so many at once. Where there are no keys, all
    clients share one limit.

    A request counts from its headers to the end of its answer, so that one that trickles in counts
    as well.
    """

    def __init__(self, app: ASGIApp, limit: int, metrics: Metrics) -> None:
        """`limit` 0 is no limit."""
        self.app = app
        self.limit = limit
        self.metrics = metrics
        self._running: Counter[str] = Counter()
        self._seconds = FIRST_GUESS_SECONDS
        """Recent mean duration of a request."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.limit == 0 or scope.get("path") not in GENERATION_PATHS:
            await self.app(scope, receive, send)
            return
        key = record_of(scope).key_hash
        if self._running[key] >= self.limit:
            self.metrics.admission_rejected("key_limit")
            # With so many running, one of them ends about that often.
            refusal = KeyLimitError(self.limit, retry_after_seconds=self._seconds / self.limit)
            await error_response(refusal, record_of(scope).request_id)(scope, receive, send)
            return
        self._running[key] += 1
        started = time.monotonic()
        try:
            await self.app(scope, receive, send)
        finally:
            self._running[key] -= 1
            if not self._running[key]:
                del self._running[key]
            self._seconds += WEIGHT_OF_NEWEST * (time.monotonic() - started - self._seconds)
