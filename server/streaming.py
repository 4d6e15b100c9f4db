"""A running generation as server-sent events.

Each event is one `data:` line of JSON. A stream ends in one of two ways: `data: [DONE]`, or an
event with an `error`, after which the connection is closed without `[DONE]`.
"""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, Protocol

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from dijiang_runtime.errors import DiJiangError
from dijiang_runtime.request import RequestOutput
from server.context import ServerContext
from server.errors import ClientDisconnectedError, describe, encode_error
from server.generation import Generation
from server.lifecycle import client_left, run_for_client
from server.middleware import RequestRecord, record_of

logger = logging.getLogger(__name__)

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"

_encoder = msgspec.json.Encoder()


class StreamEncoder(Protocol):
    """How an endpoint spells a stream: each method returns whole events, or nothing."""

    def opening(self) -> bytes: ...

    def chunk(self, index: int, output: RequestOutput) -> bytes: ...

    def closing(self) -> bytes: ...


def event(data: Any) -> bytes:
    """One event whose data is the JSON of a msgspec struct."""
    return b"data: " + _encoder.encode(data) + b"\n\n"


class EventStream(Response):
    """The response that sends a generation while it runs, and aborts it when the client leaves."""

    media_type = "text/event-stream"

    def __init__(
        self,
        context: ServerContext,
        generation: Generation,
        encoder: StreamEncoder,
        headers: Mapping[str, str],
    ) -> None:
        self.status_code = 200
        self.background = None
        # The last header asks nginx not to gather events before it passes them on.
        self.init_headers({"Cache-Control": "no-store", "X-Accel-Buffering": "no", **headers})
        self._config = context.config
        self._lifecycle = context.lifecycle
        self._generation = generation
        self._stream_encoder = encoder
        self._sending_since: float | None = None
        self._last_sent_at = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = record_of(scope)
        with self._generation:
            start = {"status": self.status_code, "headers": self.raw_headers}
            await send({"type": "http.response.start", **start})
            ending = await self._ending(record, receive, send)
        await self._send_last(ending, send)

    async def _ending(self, record: RequestRecord, receive: Receive, send: Send) -> bytes:
        """Send all events but the last ones, which are returned."""
        try:
            ending = await run_for_client(
                self._send_events(send), self._watch(receive, send), self._lifecycle
            )
        except ClientDisconnectedError:
            raise
        except Exception as exc:
            if not isinstance(exc, DiJiangError):
                logger.exception("%s failed while streaming", record.request_id)
            record.outcome = "error"
            _, body = describe(exc, record.request_id)
            return b"data: " + encode_error(body) + b"\n\n"
        record.outcome = "ok"
        return ending

    async def _send_events(self, send: Send) -> bytes:
        encoder = self._stream_encoder
        if opening := encoder.opening():
            await self._send(opening, send)
        async for batch in self._generation.batches():
            # What is ready together leaves together.
            if data := b"".join([encoder.chunk(index, output) for index, output in batch]):
                await self._send(data, send)
        return encoder.closing() + DONE

    async def _send(self, data: bytes, send: Send) -> None:
        now = asyncio.get_running_loop().time
        self._sending_since = now()
        await send({"type": "http.response.body", "body": data, "more_body": True})
        self._sending_since = None
        self._last_sent_at = now()

    async def _send_last(self, data: bytes, send: Send) -> None:
        try:
            async with asyncio.timeout(self._config.send_timeout_seconds or None):
                await send({"type": "http.response.body", "body": data, "more_body": False})
        except TimeoutError:
            raise ClientDisconnectedError from None

    async def _watch(self, receive: Receive, send: Send) -> None:
        """Return when the client has left or has stopped reading. Keep silent streams alive."""
        keep_alive = self._config.sse_keep_alive_seconds
        patience = self._config.send_timeout_seconds
        now = asyncio.get_running_loop().time
        self._last_sent_at = now()
        left = asyncio.ensure_future(client_left(receive))
        try:
            while not left.done():
                await asyncio.wait(
                    {left}, timeout=min(filter(None, (keep_alive, patience)), default=None)
                )
                if self._sending_since is not None:
                    if patience and now() - self._sending_since >= patience:
                        return
                elif keep_alive and now() - self._last_sent_at >= keep_alive and not left.done():
                    async with asyncio.timeout(patience or None):
                        await self._send(KEEP_ALIVE, send)
        except TimeoutError:
            return
        finally:
            left.cancel()
