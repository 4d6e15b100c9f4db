"""Keep-alive connections to one server: an asyncio protocol straight onto the parser.

Bytes are timed where the event loop hands them over, before anything else is done with them.
"""

import asyncio
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit

from clients.errors import ServerUnreachableError
from clients.loadtest.exchange import Exchange

CONNECT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is."""

    host: str
    port: int
    is_tls: bool
    path: str

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """The address without `/v1`, user name or password."""
        return f"{'https' if self.is_tls else 'http'}://{self.authority}{self.path}"


def parse_address(base_url: str) -> Address:
    """The parts of a server's address, given with or without `/v1`.

    Raises:
        ServerUnreachableError: this is no such address.
    """
    try:
        parts = urlsplit(base_url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or parts.scheme not in ("http", "https"):
        raise ServerUnreachableError(f"{base_url!r} is not an address such as http://host:8000.")
    is_tls = parts.scheme == "https"
    path = parts.path.rstrip("/").removesuffix("/v1")
    return Address(host, port or (443 if is_tls else 80), is_tls, path)


class Connection(asyncio.Protocol):
    """One connection, which carries one exchange at a time."""

    def __init__(self, pool: "Pool") -> None:
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclasses of asyncio's, but the same to use.
        self._transport = cast(asyncio.Transport, transport)

    def send(self, request: bytes, exchange: Exchange) -> None:
        assert self._transport is not None
        self._exchange = exchange
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        now = self._pool.clock()
        exchange = self._exchange
        if exchange is None:
            self.close()
            return
        exchange.feed(data, now)
        if exchange.is_ended:
            self._exchange = None
            # Only a response that is read to its end leaves the connection fit for the next.
            if exchange.parser.keeps_alive:
                self._pool.put_back(self)
            else:
                self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.connection_lost()

    def close(self) -> None:
        """Drop the connection at once. The server sees its client leave."""
        self._exchange = None
        if self._transport is not None:
            self._transport.abort()
            self._transport = None

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()


class Pool:
    """The connections to one server. Use `open_pool` to make one, and close it."""

    def __init__(
        self,
        address: Address,
        family: socket.AddressFamily,
        resolved: str,
        clock: Callable[[], float],
    ) -> None:
        self.address = address
        self.clock = clock
        self.num_opened = 0
        self._family, self._resolved = family, resolved
        self._ssl = ssl.create_default_context() if address.is_tls else None
        self._idle: list[Connection] = []

    async def acquire(self) -> tuple[Connection, bool]:
        """An open connection, and whether it was used before.

        Raises:
            OSError: the server does not take it.
        """
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection, True
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                connection = await self._connect()
        except TimeoutError:
            raise OSError(f"No connection within {CONNECT_SECONDS:g} s.") from None
        self.num_opened += 1
        return connection, False

    async def _connect(self) -> Connection:
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: Connection(self),
            self._resolved,
            self.address.port,
            family=self._family,
            ssl=self._ssl,
            server_hostname=self.address.host if self._ssl else None,
        )
        return connection

    def put_back(self, connection: Connection) -> None:
        self._idle.append(connection)

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()


async def open_pool(address: Address, clock: Callable[[], float] = time.perf_counter) -> Pool:
    """A pool for a server, whose name is resolved once: thousands of look-ups would queue.

    A name may stand for several addresses, as `localhost` does; the first that answers is used.

    Raises:
        ServerUnreachableError: there is no host of this name.
    """
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except OSError as exc:
        raise ServerUnreachableError(f"There is no host {address.host} ({exc}).") from exc
    pools = [Pool(address, family, str(where[0]), clock) for family, _, _, _, where in found]
    for pool in pools:
        with suppress(OSError):
            connection, _ = await pool.acquire()
            pool.put_back(connection)
            return pool
    # Nobody answers: each request will find that out, and be counted.
    return pools[0]
