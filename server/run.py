"""Run a server until a signal or a failure ends it.

The socket listens before the model is loaded, so that probes are answered from the first moment.
On SIGHUP it reads its API keys and its certificate again. On SIGTERM or SIGINT it drains: it turns
unready, refuses new work, lets what runs finish within `drain_seconds`, ends the rest with an
error, and leaves with status 0. A second signal leaves at once.
"""

import asyncio
import contextlib
import logging
import math
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import msgspec
import uvicorn
from fastapi import FastAPI
from rich.console import Console

from dijiang_runtime.config import EngineConfig
from dijiang_runtime.engine.client import EngineClient, EngineProcess
from server.app import create_app, create_probe_app
from server.config import MAX_HEADER_BYTES, ConfigError, ServerConfig
from server.context import ServerContext
from server.garbage import collect_when_quiet
from server.http_protocol import ReceiptProtocol
from server.reloading import watch_files
from server.summary import print_summary
from server.tls import renew, tls_context

logger = logging.getLogger(__name__)

BACKLOG = 2048
MAX_UNSENT_BYTES = 64 * 1024
"""What the kernel holds of an answer that has not been sent yet."""
FLUSH_SECONDS = 5
"""Least time for the last bytes to reach the clients, after everything else is over."""


def run_server(config: ServerConfig, engine_config: EngineConfig) -> int:
    """Serve a model until told to stop. Returns the exit status of the process.

    Raises:
        ConfigError: the address cannot be listened on.
        ModelLoadError: the model folder's tokenizer or template is not usable.
    """
    configure_logging(config.log_level)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(serve(EngineProcess(engine_config), config))


async def serve(engine: EngineClient, config: ServerConfig) -> int:
    """Serve an engine that has not been started yet, and stop it in the end."""
    tls = tls_context(config)
    app = create_app(engine, config)
    context: ServerContext = app.state.context
    listener = listen(config)
    server = Server(app, context, tls)
    probes = _probe_server(app, config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    running = asyncio.create_task(_run_engine(engine, context, url_of(listener, tls)))
    watching = asyncio.create_task(watch_files(server.reloaded_files, server.reload))
    try:
        await asyncio.wait({serving, running}, return_when=asyncio.FIRST_COMPLETED)
        if running.done() and (failure := running.exception()):
            logger.error("The engine cannot go on: %s", failure)
            server.fail()
        await serving
    finally:
        running.cancel()
        watching.cancel()
        if probes is not None:
            probes.cancel()
            await asyncio.gather(probes, return_exceptions=True)
        context.grammars.close()
        await engine.stop()
    return server.exit_status


def _probe_server(app: FastAPI, config: ServerConfig) -> asyncio.Task[None] | None:
    """Answer on the port for probes, where there is one, until cancelled."""
    if config.probe_port is None:
        return None
    address = msgspec.structs.replace(config, host=config.probe_host, port=config.probe_port)
    listener = listen(address)
    logger.info("probes and metrics on %s", url_of(listener))
    server = ProbeServer(_uvicorn_config(create_probe_app(app), config))
    return asyncio.create_task(server.serve(sockets=[listener]))


async def _run_engine(engine: EngineClient, context: ServerContext, url: str) -> None:
    """Start the engine and stay with it. Ends only by raising, when the engine is past help."""
    console = Console(stderr=True)
    console.print(f"Listening on {url}, loading {context.model.names[0]}.", highlight=False)
    await engine.start()
    print_summary(console, url, context.model.names, engine.info, context.config)
    collecting = asyncio.create_task(collect_when_quiet(context.lifecycle))
    try:
        await engine.wait_failed()
    finally:
        collecting.cancel()


def listen(config: ServerConfig) -> socket.socket:
    """A listening socket. Raises `ConfigError` where the address is taken or not ours."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        listener = socket.create_server((config.host, config.port), family=family, backlog=BACKLOG)
    except OSError as exc:
        reason = exc.strerror or exc
        raise ConfigError(f"Cannot listen on {config.host}:{config.port}: {reason}.") from exc
    # Connections inherit it. Without it the kernel takes megabytes for a client that does not
    # read, and its stream would go on for all the time it takes to fill them.
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, MAX_UNSENT_BYTES)
    return listener


def url_of(listener: socket.socket, tls: ssl.SSLContext | None = None) -> str:
    """Where clients on this machine find the server."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    scheme = "http" if tls is None else "https"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


class ProbeServer(uvicorn.Server):
    """uvicorn's server on the second port: signals are the first one's business."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Server(uvicorn.Server):
    """uvicorn's server, with a drain that keeps answering probes."""

    def __init__(
        self, app: FastAPI, context: ServerContext, tls: ssl.SSLContext | None = None
    ) -> None:
        super().__init__(_uvicorn_config(app, context.config))
        self.config.load()
        self.config.ssl = tls
        self._tls = tls
        self._options = context.config
        self._keys = context.keys
        self._lifecycle = context.lifecycle
        self._drain_seconds = context.config.drain_seconds
        self._drain_task: asyncio.Task[None] | None = None
        self.exit_status = 0

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Drain on the first signal, leave on the second."""
        loop = asyncio.get_running_loop()
        signals = (signal.SIGINT, signal.SIGTERM)
        for number in signals:
            loop.add_signal_handler(number, self.on_signal)
        loop.add_signal_handler(signal.SIGHUP, self.reload)
        try:
            yield
        finally:
            for number in (*signals, signal.SIGHUP):
                loop.remove_signal_handler(number)

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
        # A client that reads slowly is given what is left of the time: its answer is complete, but
        # the end of it still waits to be sent.
        remaining = math.ceil(deadline - loop.time())
        self.config.timeout_graceful_shutdown = max(FLUSH_SECONDS, remaining)
        self.should_exit = True


def configure_logging(level: str) -> None:
    """Log to standard error, one line an event."""
    logging.basicConfig(
        level=level.upper(), format="%(asctime)s %(levelname)-7s %(name)s: %(message)s"
    )
    # Its own lines about starting and stopping repeat ours.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)


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


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where it is installed; None is asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
