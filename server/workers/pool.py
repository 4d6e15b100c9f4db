"""The workers of a server: they are kept running, and given the connections that come."""

import asyncio
import contextlib
import logging
import signal
import socket
import time
from collections import deque
from pathlib import Path

from dijiang_runtime.engine.client import EngineHost
from dijiang_runtime.errors import EngineDeadError
from server.config import ServerConfig
from server.http_server import FLUSH_SECONDS
from server.key_places import LocalKeyPlaces
from server.workers.child import WorkerChild
from server.workers.messages import WorkerStart

logger = logging.getLogger(__name__)

MAX_FAILED_STARTS = 5
"""Starts of one worker that may fail one after the other before the server gives up."""

FIRST_PAUSE_SECONDS = 0.5
MAX_PAUSE_SECONDS = 30.0
STABLE_SECONDS = 60.0
"""A worker that lived this long, or has answered a request, is started again at once when it dies:
it is of use. Pauses are for one that does nothing but die."""

LEAVE_SECONDS = 2.0
"""How long a worker that was told to leave at once may take before it is killed."""

ACCEPTS_AT_ONCE = 64
RETRY_SECONDS = 0.05
OUT_OF_DESCRIPTORS_SECONDS = 1.0


class WorkerPool:
    """Keeps so many workers running, and hands connections to the one with the fewest."""

    def __init__(
        self,
        host: EngineHost,
        config: ServerConfig,
        metrics_folder: Path,
        listeners: dict[bytes, socket.socket],
    ) -> None:
        """
        Args:
            listeners: By what a worker is told of a connection. They are closed in the end.
        """
        self._host = host
        self._config = config
        self._metrics_folder = metrics_folder
        self._listeners = listeners
        self._key_places = LocalKeyPlaces(config.max_requests_per_key)
        self._started_at = int(time.time())
        self._children: list[WorkerChild] = []
        self._held: deque[tuple[socket.socket, bytes]] = deque()
        """Connections that no worker had room for."""
        self._up = asyncio.Event()
        self._stopping = asyncio.Event()
        self._resting: asyncio.TimerHandle | None = None
        self._killing: asyncio.TimerHandle | None = None
        self.exit_status = 0

    async def run(self) -> None:
        """Return when all workers have ended after `stop`.

        Raises:
            ModelLoadError: a worker says that the model cannot be served.
            EngineDeadError: workers do not start.
        """
        for listener in self._listeners.values():
            listener.setblocking(False)
        tasks = [asyncio.create_task(self._keep(i)) for i in range(self._config.api_workers)]
        try:
            # Not a group of tasks: that would wrap the one error there is in another.
            await asyncio.gather(*tasks)
        finally:
            self._close()
            if self._killing is not None:
                self._killing.cancel()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def wait_up(self) -> None:
        """Return when there is a worker that takes connections."""
        await self._up.wait()

    def stop(self) -> None:
        """Let every worker drain; called again, end them at once."""
        loop = asyncio.get_running_loop()
        if not self._stopping.is_set():
            self._stopping.set()
            # They keep to the time themselves. This is for one that hangs.
            patience = self._config.drain_seconds + 2 * FLUSH_SECONDS
        else:
            self.exit_status = 1
            patience = LEAVE_SECONDS
        for child in self._children:
            child.stop()
        if self._killing is not None:
            self._killing.cancel()
        self._killing = loop.call_later(patience, self._kill)

    def fail(self) -> None:
        """Stop with a status that tells the supervisor of this process that all is not well."""
        if not self._stopping.is_set():
            self.stop()
        self.exit_status = 1

    def reload(self) -> None:
        """Let every worker read its API keys and its certificate again."""
        for child in self._children:
            # One that starts reads them anyway, and the signal would end it.
            if child.was_up:
                child.signal(signal.SIGHUP)

    async def _keep(self, index: int) -> None:
        """Have a worker of this number running until told to stop."""
        loop = asyncio.get_running_loop()
        num_failures = 0
        while not self._stopping.is_set():
            started = loop.time()
            child = WorkerChild(self._start_of(index), self._host, self._key_places, self._look)
            self._children.append(child)
            try:
                how = await child.run()
            except OSError as exc:
                how = f"could not be started ({exc})"
            finally:
                self._children.remove(child)
            if self._stopping.is_set():
                self.exit_status = max(self.exit_status, int(child.failed))
                return
            was_of_use = child.was_of_use or loop.time() - started > STABLE_SECONDS
            num_failures = 1 if was_of_use else num_failures + 1
            if not child.was_up and num_failures >= MAX_FAILED_STARTS:
                raise EngineDeadError(f"API worker {index} {how}, each time it was started.")
            logger.error("API worker %d %s; starting another", index, how)
            await self._pause(num_failures)

    async def _pause(self, num_failures: int) -> None:
        """Wait before the next start, unless told to stop: not at first, then longer and longer."""
        if num_failures > 1:
            doublings = min(num_failures - 2, 10)
            seconds = min(MAX_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0**doublings)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), seconds)

    def _start_of(self, index: int) -> WorkerStart:
        return WorkerStart(
            config=self._config,
            index=index,
            metrics_folder=self._metrics_folder,
            started_at=self._started_at,
        )

    def _look(self) -> None:
        """Accept connections while there are workers for them."""
        if any(child.is_up for child in self._children):
            self._up.set()
            self._listen()
        elif self._stopping.is_set():
            self._close()

    def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        for kind, listener in self._listeners.items():
            loop.add_reader(listener, self._accept, listener, kind)

    def _close(self) -> None:
        """Accept nothing more."""
        if self._resting is not None:
            self._resting.cancel()
        loop = asyncio.get_running_loop()
        for listener in self._listeners.values():
            loop.remove_reader(listener)
            listener.close()
        self._listeners.clear()
        for connection, _ in self._held:
            connection.close()
        self._held.clear()

    def _kill(self) -> None:
        for child in self._children:
            child.kill()

    def _accept(self, listener: socket.socket, kind: bytes) -> None:
        for _ in range(ACCEPTS_AT_ONCE):
            try:
                connection, _ = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as exc:
                logger.error("No connection can be accepted: %s", exc)
                self._rest(OUT_OF_DESCRIPTORS_SECONDS)
                return
            if not self._give(connection, kind):
                self._held.append((connection, kind))
                self._rest(RETRY_SECONDS)
                return

    def _give(self, connection: socket.socket, kind: bytes) -> bool:
        """Hand a connection to the worker that has the fewest and takes it."""
        up = [child for child in self._children if child.is_up]
        for child in sorted(up, key=lambda child: (child.num_open, child.num_given)):
            if child.give(connection, kind):
                connection.close()
                return True
        return False

    def _rest(self, seconds: float) -> None:
        """Accept nothing for so long. The kernel keeps who comes."""
        loop = asyncio.get_running_loop()
        for listener in self._listeners.values():
            loop.remove_reader(listener)
        if self._resting is not None:
            self._resting.cancel()
        self._resting = loop.call_later(seconds, self._go_on)

    def _go_on(self) -> None:
        while self._held:
            if not self._give(*self._held[0]):
                self._rest(RETRY_SECONDS)
                return
            self._held.popleft()
        self._listen()
