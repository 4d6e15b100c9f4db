"""An engine that another process hosts: the side of `host` that an API process holds. No torch."""

import asyncio

from dijiang_runtime.engine.endpoint import Endpoint
from dijiang_runtime.engine.handle import EngineHandle
from dijiang_runtime.engine.messages import (
    ClientMessage,
    EngineStatus,
    Hello,
    HostNews,
    StepDone,
    decode_host_message,
    encode,
)
from dijiang_runtime.engine.stream_table import StreamTable
from dijiang_runtime.errors import EngineDeadError


class HostedEngine(EngineHandle):
    """An `EngineClient` over the line to the process that hosts the engine, and supervises it."""

    def __init__(self, address: str) -> None:
        """
        Args:
            address: Of the line that the host has opened for this process alone.
        """
        super().__init__()
        self._address = address
        self._endpoint: Endpoint | None = None
        self._connected = asyncio.Event()
        self._ready = asyncio.Event()
        self._reader: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Return when the engine is ready. Waits for ever for one that never is: it is the host
        that gives it up."""
        self._endpoint = Endpoint(self._address)
        self._endpoint.send(encode(Hello()))
        self._reader = asyncio.create_task(self._read(self._endpoint))
        await self._ready.wait()

    async def connected(self) -> None:
        """Return when the host has told whether there is an engine."""
        await self._connected.wait()

    async def stop(self, *, grace_seconds: float = 0.0) -> None:
        """Let running requests finish for so long, then leave the line."""
        self._stopping = True
        if self._streams is not None:
            await self._streams.wait_until_empty(grace_seconds)
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
            self._reader = None
        if self._endpoint is not None:
            self._endpoint.close()
            self._endpoint = None

    async def wait_failed(self) -> None:
        """Wait until the line breaks, which it does only by a fault of this program."""
        assert self._reader is not None, "wait_failed before start"
        await asyncio.shield(self._reader)

    def _send(self, message: ClientMessage) -> None:
        if self._endpoint is None or not self._endpoint.send(encode(message)):
            raise EngineDeadError("The engine does not take requests.")

    async def _read(self, endpoint: Endpoint) -> None:
        """Listen to the host until cancelled."""
        while True:
            message = decode_host_message(await endpoint.receive())
            if isinstance(message, EngineStatus):
                self._on_status(message)
            else:
                self._on_news(message)

    def _on_status(self, status: EngineStatus) -> None:
        self.num_restarts = status.num_restarts
        if status.is_ready and status.info is not None:
            if self._streams is None:
                self._begin(status.info, StreamTable(status.info, self._send, admits=False))
            self._ready.set()
        elif self._streams is not None:
            self._end()
        self._connected.set()

    def _on_news(self, news: HostNews) -> None:
        if self._streams is not None:
            self._streams.admit(news.admitted)
        self._on_step(StepDone(news.outputs, news.stats))
