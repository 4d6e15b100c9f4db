"""A response as it is read: the deltas of a streamed answer, or the whole body."""

import contextlib
import time
from collections.abc import Generator, Iterator
from types import TracebackType
from typing import Self

import httpx

from clients.errors import ClientError
from clients.http import reading_errors
from clients.messages import Delta
from clients.timeouts import Deadlines, Limit
from clients.watchdog import Watchdog
from clients.wire import AnswerDecoder

LINGER_SECONDS = 0.2
"""How long the end of a response may take after the end of its answer, to keep the connection."""


class Stream:
    """The deltas of one streamed answer, to be iterated once.

    Leaving its `with` block closes the connection, which stops the answer on the server.
    """

    def __init__(self, response: httpx.Response, deadlines: Deadlines, sent: float) -> None:
        self._response = response
        self._deltas = self._read(deadlines, sent)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._deltas.close()
        self._response.close()

    def __iter__(self) -> Iterator[Delta]:
        return self

    def __next__(self) -> Delta:
        """The next delta.

        Raises:
            StreamError: the server ended the answer with an error, or it broke off before its end.
            RequestTimeoutError: a limit passed.
        """
        return next(self._deltas)

    def _read(self, deadlines: Deadlines, sent: float) -> Generator[Delta]:
        decoder = AnswerDecoder()
        limit = deadlines.first_token(sent)
        with contextlib.closing(self._response), Watchdog(self._response) as watchdog:
            chunks = self._response.iter_bytes()
            while not decoder.is_done:
                if (chunk := read_chunk(chunks, watchdog, limit)) is None:
                    decoder.end()
                for delta in decoder.feed(chunk or b""):
                    yield delta
                    if delta.text:
                        limit = deadlines.next_token(time.monotonic())
            with contextlib.suppress(ClientError):
                at = time.monotonic() + LINGER_SECONDS
                read_chunk(chunks, watchdog, Limit(at, "total", LINGER_SECONDS))


def read_chunk(chunks: Iterator[bytes], watchdog: Watchdog, limit: Limit) -> bytes | None:
    """The next piece of a response, or None at its end."""
    watchdog.arm(limit)
    try:
        with reading_errors(limit):
            chunk = next(chunks, None)
    except ClientError as exc:
        if watchdog.has_bitten:
            raise limit.error() from exc
        raise
    finally:
        watchdog.disarm()
    if chunk is None and watchdog.has_bitten:
        raise limit.error()
    return chunk


def read_whole(response: httpx.Response, limit: Limit) -> bytes:
    """The body of a response, which is closed then."""
    body = bytearray()
    with contextlib.closing(response), Watchdog(response) as watchdog:
        chunks = response.iter_bytes()
        while (chunk := read_chunk(chunks, watchdog, limit)) is not None:
            body += chunk
    return bytes(body)


def read_error_body(response: httpx.Response, limit: Limit) -> bytes:
    """As much as there is: the status says the most important part."""
    try:
        return read_whole(response, limit)
    except ClientError:
        return b""
