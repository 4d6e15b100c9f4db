"""A worker: `python -m server.workers.process LINE CONNECTIONS`, started by `child.WorkerChild`.

The arguments are the descriptors of two sockets. Over the first the worker is told what to do and
reports; its end means that the main process is gone. Over the second come accepted connections.
"""

import asyncio
import contextlib
import logging
import signal
import socket
import sys

from dijiang_runtime.engine.client import HostedEngine
from dijiang_runtime.errors import ModelLoadError
from dijiang_runtime.processes import die_with_parent
from server.api_process import ApiProcess
from server.shared_metrics import MetricsShare
from server.siblings import Siblings
from server.starting import configure_logging, loop_factory
from server.tls import tls_context
from server.workers.key_places import HostedKeyPlaces
from server.workers.messages import (
    FOR_PROBES,
    MAX_LINE_BYTES,
    CannotServe,
    Leaving,
    Report,
    WorkerMessage,
    WorkerStart,
    decode_place,
    decode_start,
    encode,
)

logger = logging.getLogger(__name__)

REPORT_SECONDS = 1.0
LAST_SECONDS = 1.0
"""How long the last connections may be on their way."""
LOOK_SECONDS = 0.1
"""How often a worker looks whether connections were closed."""


class Worker:
    """An `ApiProcess` whose connections come from the main process."""

    def __init__(
        self, start: WorkerStart, connections: socket.socket, writer: asyncio.StreamWriter
    ) -> None:
        """Raises `ModelLoadError` as `ApiProcess` does."""
        config = start.config
        self._engine = HostedEngine(start.engine_address)
        self._connections = connections
        self._writer = writer
        self._key_places = HostedKeyPlaces(self._say)
        siblings = Siblings(
            metrics=MetricsShare(start.metrics_folder, start.index),
            key_places=self._key_places,
            started_at=start.started_at,
        )
        self._api = ApiProcess(self._engine, config, tls_context(config), siblings)
        self._api.server.on_drained = self._leave
        self._no_more = asyncio.Event()
        """Set when no connection will come any more."""

    async def run(self, parent: asyncio.StreamReader) -> int:
        """Serve until told to stop. Returns the exit status."""
        loop = asyncio.get_running_loop()
        self._connections.setblocking(False)
        loop.add_reader(self._connections, self._take)
        beside = [asyncio.create_task(self._report()), asyncio.create_task(self._listen(parent))]
        try:
            return await self._api.run(self._engine.start())
        finally:
            loop.remove_reader(self._connections)
            for task in beside:
                task.cancel()

    def _say(self, message: WorkerMessage) -> None:
        self._writer.write(encode(message))

    def _take(self) -> None:
        """Serve the connections that have come."""
        while True:
            try:
                kind, descriptors, _, _ = socket.recv_fds(self._connections, 1, 1)
            except BlockingIOError:
                return
            if not kind:
                asyncio.get_running_loop().remove_reader(self._connections)
                self._no_more.set()
                return
            connection = socket.socket(fileno=descriptors[0])
            self._api.take(connection, for_probes=kind == FOR_PROBES)

    async def _leave(self) -> None:
        """Let nobody down whose connection is on its way: the other workers may stay longer."""
        self._say(Leaving())
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._no_more.wait(), LAST_SECONDS)

    async def _report(self) -> None:
        """Tell the main process that this one lives, and how many connections it has closed."""
        loop = asyncio.get_running_loop()
        # Nobody should learn here that there is no engine, and from another worker that there is.
        await self._engine.connected()
        reported, last = -1, 0.0
        while True:
            num_closed, now = self._api.num_closed, loop.time()
            if num_closed != reported or now - last >= REPORT_SECONDS:
                self._api.measure()
                self._say(Report(num_closed))
                reported, last = num_closed, now
            await asyncio.sleep(LOOK_SECONDS)

    async def _listen(self, parent: asyncio.StreamReader) -> None:
        """Take what the main process answers, and leave when it is gone."""
        while line := await parent.readline():
            self._key_places.on_answer(decode_place(line))
        self._api.server.leave()


async def work(line: int, connections: int) -> int:
    """Be a worker. Returns the exit status."""
    reader, writer = await asyncio.open_unix_connection(
        sock=socket.socket(fileno=line), limit=MAX_LINE_BYTES
    )
    start = decode_start(await reader.readline())
    configure_logging(start.config.log_level)
    try:
        worker = Worker(start, socket.socket(fileno=connections), writer)
    except ModelLoadError as exc:
        writer.write(encode(CannotServe(str(exc))))
        await writer.drain()
        return 1
    return await worker.run(reader)


def main() -> int:
    die_with_parent()
    # Ctrl-C reaches the whole terminal; the main process decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    line, connections = map(int, sys.argv[1:])
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(work(line, connections))


if __name__ == "__main__":
    sys.exit(main())
