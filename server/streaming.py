"""A running generation as server-sent events.

Each event is one `data:` line of JSON. A stream ends in one of two ways: `data: [DONE]`, or an
event with an `error`, after which the connection is closed without `[DONE]`.
"""

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Any, Protocol

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from dijiang_runtime.errors import DiJiangError
from dijiang_runtime.request import PositionLogprobs, RequestOutput
from server.context import ServerContext
from server.errors import ClientDisconnectedError, ErrorBody, describe, encode_error
from server.generation import Generation
from server.lifecycle import client_left, run_for_client
from server.middleware import RequestRecord, record_of

logger = logging.getLogger(__name__)

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"

_encoder = msgspec.json.Encoder()


class StreamEncoder(Protocol):
    """How an endpoint spells a stream: each method returns whole events, or nothing.

    Made to be derived from, for the endings that most endpoints share.
    """

    def opening(self) -> bytes: ...

    def chunk(self, index: int, output: RequestOutput) -> bytes: ...

    def closing(self) -> bytes:
        """What comes after the last chunk of an answer that is complete."""
        return DONE

    def failure(self, error: ErrorBody) -> bytes:
        """What ends a stream that failed."""
        return b"data: " + encode_error(error) + b"\n\n"


class HeldTokens:
    """What came for one choice while its text was held back. It is sent with the text."""

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self.logprobs: list[PositionLogprobs] = []

    def add(self, output: RequestOutput) -> None:
        self.token_ids.extend(output.token_ids)
        self.logprobs.extend(output.logprobs or ())

    def clear(self) -> None:
        self.token_ids.clear()
        self.logprobs.clear()


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
        self._lifecycle = context.lifecycle
        self._generation = generation
        self._stream_encoder = encoder
        # 0 is never, which asyncio calls None.
        self._patience = context.config.send_timeout_seconds or None
        self._keep_alive = context.config.sse_keep_alive_seconds or None
        self._last_sent_at = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = record_of(scope)
        with self._generation:
            start = {"status": self.status_code, "headers": self.raw_headers}
            await send({"type": "http.response.start", **start})
            ending = await self._ending(record, receive, send)
        await self._send(ending, send, more=False)

    async def _ending(self, record: RequestRecord, receive: Receive, send: Send) -> bytes:
        """Send all events but the last ones, which are returned."""
        try:
            ending = await run_for_client(
                self._send_events(send),
                self._watch(receive, send),
                self._lifecycle,
                deadline=self._generation.deadline,
            )
        except ClientDisconnectedError:
            raise
        except Exception as exc:
            if not isinstance(exc, DiJiangError):
                logger.exception("%s failed while streaming", record.request_id)
            record.outcome = "error"
            _, body = describe(exc, record.request_id)
            return self._stream_encoder.failure(body)
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
        return encoder.closing()

    async def _send(self, data: bytes, send: Send, *, more: bool = True) -> None:
        try:
            # Sending waits while the client does not read and the buffers are full.
            async with asyncio.timeout(self._patience):
                await send({"type": "http.response.body", "body": data, "more_body": more})
        except TimeoutError:
            raise ClientDisconnectedError from None
        self._last_sent_at = time.monotonic()

    async def _watch(self, receive: Receive, send: Send) -> None:
        """Return when the client has left. Until then, keep a silent stream alive."""
        left = asyncio.ensure_future(client_left(receive))
        self._last_sent_at = time.monotonic()
        try:
            while not left.done():
                await asyncio.wait({left}, timeout=self._keep_alive)
                silence = time.monotonic() - self._last_sent_at
                if not left.done() and self._keep_alive and silence >= self._keep_alive:
                    await self._send(KEEP_ALIVE, send)
        except ClientDisconnectedError:
            return
        finally:
            left.cancel()
