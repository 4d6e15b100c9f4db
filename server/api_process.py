"""A process that answers the API: the only one of a server, or one of its workers."""

import asyncio
import logging
import socket
import ssl
from collections.abc import Coroutine

from dijiang_runtime.engine.client import EngineClient
from server.app import create_app
from server.config import ServerConfig
from server.context import ServerContext
from server.garbage import collect_when_quiet
from server.http_server import HttpServer, ProbeServer, Server
from server.reloading import watch_files
from server.siblings import Siblings

logger = logging.getLogger(__name__)


class ApiProcess:
    """The application around an engine, and what serves it."""

    def __init__(
        self,
        engine: EngineClient,
        config: ServerConfig,
        tls: ssl.SSLContext | None,
        siblings: Siblings | None = None,
    ) -> None:
        """
        Args:
            engine: One that is not started yet.
            siblings: What it shares with others that serve the same clients, if there are any.

        Raises:
            ModelLoadError: the model folder's tokenizer or template is not usable.
        """
        self._engine = engine
        app = create_app(engine, config, siblings)
        self._context: ServerContext = app.state.context
        if siblings is not None:
            # It may take the place of one that died: the keys are no longer those of the start.
            self._context.keys.reload(quietly=True)
        self.server = Server(app, self._context, tls)
        self.probes = None if config.probe_port is None else ProbeServer(app, config)

    @property
    def num_closed(self) -> int:
        """How many of the connections that were handed to `take` are closed again."""
        return sum(server.num_closed for server in self._servers)

    @property
    def _servers(self) -> list[HttpServer]:
        return [self.server] if self.probes is None else [self.server, self.probes]

    def take(self, connection: socket.socket, *, for_probes: bool) -> None:
        """Serve a connection that another process has accepted."""
        server = self.probes if for_probes else self.server
        assert server is not None, "there are connections for probes only with a port for them"
        server.take(connection)

    def measure(self) -> None:
        """Bring up to date what the metrics say of this process."""
        self._context.metrics.update_process()

    async def run(
        self,
        start: Coroutine[None, None, None],
        listener: socket.socket | None = None,
        probe_listener: socket.socket | None = None,
    ) -> int:
        """Serve until told to stop, then stop the engine. Returns the exit status.

        Args:
            start: Starts the engine. Should it fail, or the engine later, the server stops.
            listener: Where the clients come; None where they come through `take`.
            probe_listener: The same for the port for probes.
        """
        server = self.server
        serving = asyncio.create_task(server.serve(sockets=_as_list(listener)))
        beside = [asyncio.create_task(watch_files(server.reloaded_files, server.reload))]
        if self.probes is not None:
            beside.append(asyncio.create_task(self.probes.serve(sockets=_as_list(probe_listener))))
        running = asyncio.create_task(self._run_engine(start))
        try:
            await asyncio.wait({serving, running}, return_when=asyncio.FIRST_COMPLETED)
            if running.done() and (failure := running.exception()):
                logger.error("The engine cannot go on: %s", failure)
                server.fail()
            await serving
        finally:
            for task in (running, *beside):
                task.cancel()
            await asyncio.gather(running, *beside, return_exceptions=True)
            self._context.grammars.close()
            await self._engine.stop()
        return server.exit_status

    async def _run_engine(self, start: Coroutine[None, None, None]) -> None:
        """Start the engine and stay with it. Ends only by raising: the engine is past help."""
        await start
        collecting = asyncio.create_task(
            collect_when_quiet(lambda: self._context.lifecycle.num_active)
        )
        try:
            await self._engine.wait_failed()
        finally:
            collecting.cancel()


def _as_list(listener: socket.socket | None) -> list[socket.socket]:
    return [] if listener is None else [listener]
