"""An engine in a thread of this process, behind the same handle as one in its own process."""

import asyncio
import logging
import os
import queue
import threading
from collections.abc import Callable
from functools import partial

from dijiang_runtime.config import EngineConfig
from dijiang_runtime.engine import loop
from dijiang_runtime.engine.engine import Engine
from dijiang_runtime.engine.handle import EngineHandle
from dijiang_runtime.engine.messages import (
    ClientMessage,
    EngineMessage,
    Ready,
    Shutdown,
    StepDone,
)
from dijiang_runtime.engine.stream_table import StreamTable
from dijiang_runtime.errors import EngineDeadError

logger = logging.getLogger(__name__)


class InProcessEngine(EngineHandle):
    """An `EngineClient` that shares memory, interpreter and fate with its engine."""

    def __init__(self, engine: EngineConfig | Callable[[], Engine]) -> None:
        """
        Args:
            engine: What to load, or a function that makes the engine; it is called in the thread.
        """
        super().__init__()
        self._build = engine if callable(engine) else partial(Engine.from_config, engine)
        self._commands: queue.SimpleQueue[ClientMessage] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    async def start(self) -> None:
        """Load the model and return when it is ready. Raises what loading it raises."""
        # Threads that wait should sleep: torch reads this when it is first imported.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._ended: asyncio.Future[Exception | None] = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()
        await self._ready

    async def stop(self, *, grace_seconds: float = 0.0) -> None:
        """Let running requests finish for so long, then end the thread."""
        self._stopping = True
        if self._streams is not None:
            await self._streams.wait_until_empty(grace_seconds)
        if self._thread is not None:
            self._commands.put(Shutdown())
            await self._loop.run_in_executor(None, self._thread.join)
            self._thread = None

    async def wait_failed(self) -> None:
        """Wait until the thread ends by an exception, and raise it as `EngineDeadError`."""
        error = await asyncio.shield(self._ended)
        if error is not None:
            raise EngineDeadError() from error

    def receive(self, timeout_seconds: float) -> list[ClientMessage]:
        """The engine's side: what `generate` and `abort` have sent. Part of `loop.Channel`."""
        messages = []
        try:
            messages.append(self._commands.get(timeout_seconds > 0, timeout_seconds or None))
            while True:
                messages.append(self._commands.get_nowait())
        except queue.Empty:
            return messages

    def send(self, message: EngineMessage) -> None:
        """The engine's side: tell the event loop. Part of `loop.Channel`."""
        self._in_loop(partial(self._handle, message))

    def _run(self) -> None:
        """The thread."""
        error: Exception | None = None
        try:
            engine = self._build()
            self.send(Ready(engine.info))
            loop.run(engine, self)
        except Exception as exc:
            logger.exception("the engine thread ended")
            error = exc
        self._in_loop(partial(self._on_end, error))

    def _in_loop(self, callback: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:
            # The event loop was closed without `stop`: nobody is left to be told.
            self._commands.put(Shutdown())

    def _handle(self, message: EngineMessage) -> None:
        if isinstance(message, Ready):
            self._begin(message.info, StreamTable(message.info, self._commands.put))
            if not self._ready.done():
                self._ready.set_result(None)
        elif isinstance(message, StepDone):
            self._on_step(message)

    def _on_end(self, error: Exception | None) -> None:
        if not self._ready.done():
            self._ready.set_exception(error or EngineDeadError())
        self._end()
        if not self._ended.done():
            self._ended.set_result(error)
