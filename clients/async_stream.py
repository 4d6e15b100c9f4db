"""A response as the asynchronous client reads it: `clients.stream` with `await`."""

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator
from types import TracebackType
from typing import Self

import httpx

from clients.errors import ClientError
from clients.http import reading_errors
from clients.messages import Delta
from clients.stream import LINGER_SECONDS
from clients.timeouts import Deadlines, Limit
from clients.wire import AnswerDecoder


class AsyncStream:
    """The deltas of one streamed answer, to be iterated once.

    Leaving its `async with` block, or cancelling the task that reads it, closes the connection,
    which stops the answer on the server.
    """

    def __init__(self, response: httpx.Response, deadlines: Deadlines, sent: float) -> None:
        self._response = response
        self._deltas = self._read(deadlines, sent)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._deltas.aclose()
        await self._response.aclose()

    def __aiter__(self) -> AsyncIterator[Delta]:
        return self

    async def __anext__(self) -> Delta:
        """The next delta. Raises what the iteration of a `Stream` raises."""
        return await anext(self._deltas)

    async def _read(self, deadlines: Deadlines, sent: float) -> AsyncGenerator[Delta]:
        decoder = AnswerDecoder()
        limit = deadlines.first_token(sent)
        async with contextlib.aclosing(self._response):
            chunks = self._response.aiter_bytes()
            while not decoder.is_done:
                if (chunk := await read_chunk(chunks, limit)) is None:
                    decoder.end()
                for delta in decoder.feed(chunk or b""):
                    yield delta
                    if delta.text:
                        limit = deadlines.next_token(time.monotonic())
            with contextlib.suppress(ClientError):
                at = time.monotonic() + LINGER_SECONDS
                await read_chunk(chunks, Limit(at, "total", LINGER_SECONDS))


async def read_chunk(chunks: AsyncIterator[bytes], limit: Limit) -> bytes | None:
    """The next piece of a response, or None at its end."""
    with reading_errors(limit):
        async with by(limit):
            return await anext(chunks, None)


@contextlib.asynccontextmanager
async def by(limit: Limit) -> AsyncIterator[None]:
    """Let what stands inside take until the limit, and no longer."""
    left = limit.at - time.monotonic()
    try:
        async with asyncio.timeout(None if left == math.inf else left):
            yield
    except TimeoutError as exc:
        raise limit.error() from exc


async def read_whole(response: httpx.Response, limit: Limit) -> bytes:
    """The body of a response, which is closed then."""
    body = bytearray()
    async with contextlib.aclosing(response):
        chunks = response.aiter_bytes()
        while (chunk := await read_chunk(chunks, limit)) is not None:
            body += chunk
    return bytes(body)


async def read_error_body(response: httpx.Response, limit: Limit) -> bytes:
    """As much as there is: the status says the most important part."""
    try:
        return await read_whole(response, limit)
    except ClientError:
        return b""
