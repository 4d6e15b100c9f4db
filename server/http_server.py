"""uvicorn's server as we run it: with a drain that keeps answering probes."""

import asyncio
import contextlib
import logging
import math
import signal
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from server.app import create_probe_app
from server.config import MAX_HEADER_BYTES, ServerConfig
from server.context import ServerContext
from server.http_protocol import ReceiptProtocol
from server.listening import BACKLOG
from server.tls import renew

logger = logging.getLogger(__name__)

FLUSH_SECONDS = 5
"""Least time for the last bytes to reach the clients, after everything else is over."""


class HttpServer(uvicorn.Server):
    """Takes connections from listening sockets, and those that another process has accepted."""

    def __init__(self, app: FastAPI, config: ServerConfig) -> None:
        super().__init__(_uvicorn_config(app, config))
        self.config.load()
        self._handshakes: set[asyncio.Task[None]] = set()
        self._num_taken = 0
        self._is_closed = False

    @property
    def num_closed(self) -> int:
        """How many of the connections taken from another process are closed again."""
        return self._num_taken - len(self._handshakes) - len(self.server_state.connections)

    def take(self, connection: socket.socket) -> None:
        """Serve a connection that is accepted already."""
        if self._is_closed:
            connection.close()
            return
        self._num_taken += 1
        task = asyncio.create_task(self._connect(connection))
        self._handshakes.add(task)
        task.add_done_callback(self._handshakes.discard)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the connections there are, and take no more."""
        self._is_closed = True
        await super().shutdown(sockets)

    async def _connect(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(
                # As uvicorn makes it for the connections that it accepts itself.
                lambda: self.config.http_protocol_class(  # type: ignore[call-arg]
                    config=self.config,
                    server_state=self.server_state,
                    app_state=self.lifespan.state,
                ),
                connection,
                ssl=self.config.ssl,
            )
        except OSError as exc:
            # It has left again, or does not speak TLS.
            logger.debug("a connection was not made: %s", exc)
            connection.close()


class ProbeServer(HttpServer):
    """The server of the second port. Signals are the first one's business."""

    def __init__(self, app: FastAPI, config: ServerConfig) -> None:
        super().__init__(create_probe_app(app), config)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Server(HttpServer):
    """The server of the API."""

    def __init__(
        self, app: FastAPI, context: ServerContext, tls: ssl.SSLContext | None = None
    ) -> None:
        super().__init__(app, context.config)
        self.config.ssl = tls
        self._tls = tls
        self._options = context.config
        self._keys = context.keys
        self._lifecycle = context.lifecycle
        self._drain_seconds = context.config.drain_seconds
        self._drain_task: asyncio.Task[None] | None = None
        self.on_drained: Callable[[], Awaitable[None]] | None = None
        """Called before it leaves, when what ran has ended."""
        self.exit_status = 0

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Drain on the first signal, leave on the second."""
        with on_signals(self.on_signal, self.reload):
            yield

    @property
    def reloaded_files(self) -> list[Path]:
        """The files that `reload` reads."""
        options = self._options
        files = (options.api_key_file, options.ssl_certfile, options.ssl_keyfile)
        return [file for file in files if file is not None]

    def reload(self) -> None:
        """Read the API keys and the certificate again. What runs goes on."""
        self._keys.reload()
        if self._tls is not None:
            renew(self._tls, self._options)

    def on_signal(self) -> None:
        if self._drain_task is None:
            self._drain_task = asyncio.get_running_loop().create_task(self._drain())
            return
        self.leave()

    def leave(self) -> None:
        """End at once what still runs."""
        logger.warning("Leaving at once.")
        self.exit_status = 1
        self.should_exit = self.force_exit = True
        self._lifecycle.end_remaining()

    def fail(self) -> None:
        """Stop with a status that tells the supervisor of this process that all is not well."""
        self.exit_status = 1
        self.should_exit = True

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._drain_seconds
        self._lifecycle.begin_drain()
        logger.info("Draining: %d requests are running.", self._lifecycle.num_active)
        try:
            async with asyncio.timeout(self._drain_seconds):
                await self._lifecycle.wait_until_idle()
        except TimeoutError:
            logger.warning("Ending %d requests.", self._lifecycle.num_active)
            self._lifecycle.end_remaining()
        if self.on_drained is not None:
            await self.on_drained()
        # A client that reads slowly is given what is left of the time: its answer is complete, but
        # the end of it still waits to be sent.
        remaining = math.ceil(deadline - loop.time())
        self.config.timeout_graceful_shutdown = max(FLUSH_SECONDS, remaining)
        self.should_exit = True


@contextlib.contextmanager
def on_signals(stop: Callable[[], None], reload: Callable[[], None]) -> Iterator[None]:
    """Call `stop` for every SIGTERM and SIGINT, and `reload` for every SIGHUP."""
    loop = asyncio.get_running_loop()
    handlers = {signal.SIGINT: stop, signal.SIGTERM: stop, signal.SIGHUP: reload}
    for number, handler in handlers.items():
        loop.add_signal_handler(number, handler)
    try:
        yield
    finally:
        for number in handlers:
            loop.remove_signal_handler(number)


def _uvicorn_config(app: FastAPI, config: ServerConfig) -> uvicorn.Config:
    protocol = partial(
        ReceiptProtocol,
        header_seconds=config.header_timeout_seconds,
        body_seconds=config.body_timeout_seconds,
    )
    return uvicorn.Config(
        app,
        # httptools has no limit on the size of headers.
        http=protocol,  # type: ignore[arg-type]
        ws="none",
        lifespan="off",
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        backlog=BACKLOG,
        timeout_keep_alive=math.ceil(config.keep_alive_timeout_seconds),
        timeout_graceful_shutdown=FLUSH_SECONDS,
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
    )
