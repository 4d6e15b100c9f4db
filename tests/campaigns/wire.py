"""A small HTTP client for campaigns: cheap for the machine that it shares with the server.

It is exact about how an answer ended.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from tests.campaigns import patience

DONE = "[DONE]"


class NoAnswer(Exception):
    """The connection ended before the head of a response."""


class CutOff(Exception):
    """The connection ended inside a response."""


@dataclass(frozen=True, slots=True)
class Head:
    """The first lines of a response."""

    status: int
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole response."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)

    def json(self) -> Any:
        return json.loads(self.body)


class Connection:
    """One keep-alive connection. Opened again when the server has closed it."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = str(parts.hostname), int(parts.port or 80)
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self.local_port = 0
        """Where the connection comes from, or the last one came from."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.transport.abort()
        self._reader = self._writer = None

    async def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(
                self._host, self._port, limit=2**20
            )
            self.local_port = self._writer.get_extra_info("sockname")[1]
        self._writer.write(data)
        await self._writer.drain()

    async def get(self, path: str) -> Reply:
        return await self.exchange(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())

    async def post(self, path: str, body: Any) -> Reply:
        """Send a request with this JSON, and read the whole answer."""
        return await self.exchange(request_bytes(path, body))

    async def exchange(self, data: bytes) -> Reply:
        """Send a request and read the whole answer to it."""
        await self.send(data)
        head = await self.head()
        body = b"".join([part async for part in self._body(head)])
        if head.headers.get("connection") == "close":
            self.close()
        return Reply(head.status, head.headers, body)

    async def head(self) -> Head:
        """Read the head of the next response. Raises `NoAnswer` where there is none."""
        assert self._reader is not None
        try:
            data = await self._reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, OSError) as exc:
            self.close()
            raise NoAnswer from exc
        first, *lines = data[:-4].decode("latin-1").split("\r\n")
        pairs = (line.partition(":") for line in lines)
        return Head(
            int(first.split(" ", 2)[1]), {k.strip().lower(): v.strip() for k, _, v in pairs}
        )

    async def events(self, body: Any, path: str = "/v1/completions") -> AsyncIterator[str]:
        """The data of each event of a streamed answer; of any other, its body as the only one."""
        await self.send(request_bytes(path, {**body, "stream": True}))
        head = await self.head()
        if "event-stream" not in head.headers.get("content-type", ""):
            yield b"".join([part async for part in self._body(head)]).decode()
            return
        rest = b""
        async for part in self._body(head):
            *events, rest = (rest + part).split(b"\n\n")
            for event in events:
                if event.startswith(b"data: "):
                    yield event[6:].decode()

    async def _body(self, head: Head) -> AsyncIterator[bytes]:
        reader = self._reader
        assert reader is not None
        try:
            if head.headers.get("transfer-encoding") == "chunked":
                while size := int(await reader.readuntil(b"\r\n"), 16):
                    yield (await reader.readexactly(size + 2))[:-2]
                await reader.readexactly(2)
            elif length := int(head.headers.get("content-length", 0)):
                yield await reader.readexactly(length)
        except (asyncio.IncompleteReadError, OSError) as exc:
            self.close()
            raise CutOff from exc


def request_bytes(path: str, body: Any, headers: str = "") -> bytes:
    """A POST of this JSON, or of these bytes."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{headers}"
        f"Content-Length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


async def until_ready(url: str, seconds: float = patience.SECONDS, *, ready: bool = True) -> None:
    """Return when the server is ready, or when it is not."""
    async with asyncio.timeout(seconds), Connection(url) as connection:
        while True:
            try:
                if ((await connection.get("/readyz")).status == 200) == ready:
                    return
            except (NoAnswer, CutOff, OSError):
                connection.close()
            await asyncio.sleep(0.01 if ready else 0.001)
