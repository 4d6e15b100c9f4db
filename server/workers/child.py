"""One worker as the main process sees it: started, listened to, given connections, and ended."""

import asyncio
import asyncio.subprocess
import contextlib
import logging
import signal
import socket
import sys
from collections import Counter
from collections.abc import Callable

import msgspec

from dijiang_runtime.engine.client import EngineHost
from dijiang_runtime.errors import ModelLoadError
from dijiang_runtime.processes import exit_text
from server.key_places import LocalKeyPlaces
from server.workers.messages import (
    MAX_LINE_BYTES,
    CannotServe,
    GiveBackPlace,
    Leaving,
    Place,
    Report,
    TakePlace,
    WorkerStart,
    decode_message,
    encode,
)

logger = logging.getLogger(__name__)

SILENCE_SECONDS = 30.0
"""How long a worker may be silent before it is killed. It reports every second."""


class WorkerChild:
    """Owns a worker's process, its line to the engine, and the two pairs of sockets."""

    def __init__(
        self,
        start: WorkerStart,
        host: EngineHost,
        key_places: LocalKeyPlaces,
        on_change: Callable[[], None],
    ) -> None:
        """
        Args:
            start: What it is told, but for the engine's address.
            key_places: Those that all workers have together.
            on_change: Called when `is_up` has changed.
        """
        self._start = start
        self._key_places = key_places
        self._taken: Counter[str] = Counter()
        """Places that this one has of each key."""
        self._on_change = on_change
        self._is_stopping = False
        self._guest = host.open()
        self._line, self._their_line = socket.socketpair()
        self._connections, self._their_connections = socket.socketpair()
        self._connections.setblocking(False)
        self._process: asyncio.subprocess.Process | None = None
        self._last_heard = 0.0
        self._num_closed = 0
        self.num_given = 0
        """Connections that it was given."""
        self.is_up = False
        """Whether it takes connections."""
        self.was_up = False
        """Whether it ever did."""

    @property
    def num_open(self) -> int:
        """Connections that it has not closed, as far as it has told."""
        return self.num_given - self._num_closed

    @property
    def was_of_use(self) -> bool:
        """Whether it has answered anybody."""
        return self._guest.num_finished > 0

    @property
    def failed(self) -> bool:
        """Whether it has ended, and not well."""
        return self._process is not None and bool(self._process.returncode) and self.was_up

    async def run(self) -> str:
        """Start the process and stay with it to its end. Returns how it ended.

        Raises:
            ModelLoadError: it says that the model cannot be served.
        """
        theirs = (self._their_line.fileno(), self._their_connections.fileno())
        try:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "server.workers.process",
                *map(str, theirs),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=theirs,
                # Away from the terminal's Ctrl-C: the main process decides when it ends.
                start_new_session=True,
            )
            if self._is_stopping:
                self.kill()
            self._their_line.close()
            self._their_connections.close()
            return await self._stay(self._process)
        finally:
            self.is_up = False
            if self._process is not None and self._process.returncode is None:
                self.kill()
                await self._process.wait()
            for end in (self._line, self._their_line, self._connections, self._their_connections):
                end.close()
            for key in self._taken.elements():
                self._key_places.forget(key)
            await self._guest.close()

    def give(self, connection: socket.socket, kind: bytes) -> bool:
        """Hand a connection over. Returns whether there was room for it on the way."""
        try:
            socket.send_fds(self._connections, [kind], [connection.fileno()])
        except OSError:
            return False
        self.num_given += 1
        return True

    def stop(self) -> None:
        """Let it drain; called again, end what it does at once."""
        self._is_stopping = True
        self.signal(signal.SIGTERM)

    def signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)

    async def _stay(self, process: asyncio.subprocess.Process) -> str:
        reader, writer = await asyncio.open_unix_connection(sock=self._line, limit=MAX_LINE_BYTES)
        start = msgspec.structs.replace(self._start, engine_address=self._guest.address)
        writer.write(encode(start))
        watching = asyncio.create_task(self._watch())
        try:
            # Ends with the process, or a moment before.
            await self._listen(reader, writer)
            await process.wait()
            return exit_text(process.returncode)
        finally:
            watching.cancel()
            writer.close()

    async def _listen(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take what it says until it ends."""
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                match decode_message(line):
                    case Report() as report:
                        self._on_report(report)
                    case TakePlace(key):
                        retry_after = self._key_places.take_now(key)
                        self._taken[key] += retry_after is None
                        writer.write(encode(Place(retry_after)))
                    case GiveBackPlace(key, seconds):
                        self._taken[key] -= 1
                        self._key_places.give_back(key, seconds)
                    case Leaving():
                        self.is_up = False
                        self._connections.shutdown(socket.SHUT_WR)
                        self._on_change()
                    case CannotServe(message):
                        raise ModelLoadError(message)

    def _on_report(self, report: Report) -> None:
        self._last_heard = asyncio.get_running_loop().time()
        self._num_closed = report.num_closed
        if not self.was_up:
            self.is_up = self.was_up = True
            self._on_change()

    async def _watch(self) -> None:
        """Kill it when it is silent for too long after it was up."""
        loop = asyncio.get_running_loop()
        suspected_at: float | None = None
        while True:
            await asyncio.sleep(SILENCE_SECONDS / 4)
            silence = loop.time() - self._last_heard
            if not self.was_up or silence <= SILENCE_SECONDS:
                continue
            # Silent since the last look as well: this process was not just too busy to listen.
            if suspected_at == self._last_heard:
                logger.error("an API worker has been silent for %.1f s", silence)
                self.kill()
                return
            suspected_at = self._last_heard
