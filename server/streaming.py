"""A running generation as server-sent events.

Each event is one `data:` line of JSON. A stream ends in one of two ways: `data: [DONE]`, or an
event with an `error`, after which the connection is closed without `[DONE]`.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol
from uuid import uuid4

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
        self.prompt_logprobs: tuple[PositionLogprobs | None, ...] | None = None

    def add(self, output: RequestOutput) -> None:
        self.token_ids.extend(output.token_ids)
        self.logprobs.extend(output.logprobs or ())
        if output.prompt_logprobs is not None:
            self.prompt_logprobs = output.prompt_logprobs

    def clear(self) -> None:
        self.token_ids.clear()
        self.logprobs.clear()
        self.prompt_logprobs = None


def event(data: Any) -> bytes:
    """One event whose data is the JSON of a msgspec struct."""
    return b"data: " + _encoder.encode(data) + b"\n\n"


class EventTemplate:
    """Events that differ in one text alone, without encoding the rest of them each time."""

    def __init__(self, make: Callable[[str], Any]) -> None:
        """`make` gives the data of the event for a text."""
        # Random, so that nothing else in the event can read like it.
        mark = uuid4().hex
        head, tail = event(make(mark)).split(_encoder.encode(mark))
        self._head, self._tail = head, tail

    def event(self, text: str) -> bytes:
        return self._head + _encoder.encode(text) + self._tail


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
        self._sending_since: float | None = None
        """Since when a write waits for the client to read."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = record_of(scope)
        with self._generation:
            start = {"status": self.status_code, "headers": self.raw_headers}
            await send({"type": "http.response.start", **start})
            ending = await self._ending(record, receive, send)
        try:
            async with asyncio.timeout(self._patience):
                await self._send(ending, send, more=False)
        except TimeoutError:
            raise ClientDisconnectedError from None

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
        # Sending waits while the client does not read and the buffers are full; `_watch` sees to it
        # that this does not take for ever. A timer for each write would cost as much as the write.
        self._sending_since = time.monotonic()
        await send({"type": "http.response.body", "body": data, "more_body": more})
        self._sending_since = None
        self._last_sent_at = time.monotonic()

    async def _watch(self, receive: Receive, send: Send) -> None:
        """Return when the client has left or has not read for too long. Until then, keep a silent
        stream alive."""
        left = asyncio.ensure_future(client_left(receive))
        self._last_sent_at = time.monotonic()
        try:
            while True:
                await asyncio.wait({left}, timeout=self._next_look())
                if left.done() or self._is_stuck():
                    return
                if self._is_silent():
                    async with asyncio.timeout(self._patience):
                        await self._send(KEEP_ALIVE, send)
        except TimeoutError:
            return
        finally:
            left.cancel()

    def _is_stuck(self) -> bool:
        """Whether a write has waited for the client for longer than it may."""
        since = self._sending_since
        return since is not None and bool(
            self._patience and time.monotonic() - since >= self._patience
        )

    def _is_silent(self) -> bool:
        """Whether a comment is due."""
        silence = time.monotonic() - self._last_sent_at
        is_due = self._keep_alive and silence >= self._keep_alive
        return self._sending_since is None and bool(is_due)

    def _next_look(self) -> float | None:
        """Seconds until something may have to be done for a stream that does not get on."""
        now = time.monotonic()
        if self._sending_since is not None:
            if not self._patience:
                return self._keep_alive
            return max(0.0, self._sending_since + self._patience - now)
        # A write that begins later may take until later.
        looks = [self._patience] if self._patience else []
        if self._keep_alive:
            looks.append(max(0.0, self._last_sent_at + self._keep_alive - now))
        return min(looks, default=None)
