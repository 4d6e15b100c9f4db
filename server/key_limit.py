"""How much of the server one API key may have at once."""

import time

from starlette.types import ASGIApp, Receive, Scope, Send

from server.errors import KeyLimitError, error_response
from server.key_places import KeyPlaces
from server.metrics import GENERATION_PATHS, Metrics
from server.middleware import record_of


class KeyLimitMiddleware:
    """Refuses a key's requests for text beyond so many at once. Where there are no keys, all
    clients share one limit.

    A request counts from its headers to the end of its answer, so that one that trickles in counts
    as well.
    """

    def __init__(self, app: ASGIApp, limit: int, places: KeyPlaces, metrics: Metrics) -> None:
        """`limit` is the number of places that a key has; 0 is no limit."""
        self.app = app
        self.limit = limit
        self.places = places
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.limit == 0 or scope.get("path") not in GENERATION_PATHS:
            await self.app(scope, receive, send)
            return
        key = record_of(scope).key_hash
        retry_after = await self.places.take(key)
        if retry_after is not None:
            self.metrics.admission_rejected("key_limit")
            refusal = KeyLimitError(self.limit, retry_after_seconds=retry_after)
            await error_response(refusal, record_of(scope).request_id)(scope, receive, send)
            return
        started = time.monotonic()
        try:
            await self.app(scope, receive, send)
        finally:
            self.places.give_back(key, time.monotonic() - started)
