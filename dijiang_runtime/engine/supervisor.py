"""The engine in a child process that is watched, and started again when it dies or hangs."""

import asyncio
import contextlib
import logging

from dijiang_runtime.config import EngineConfig
from dijiang_runtime.engine.child import EngineChild
from dijiang_runtime.engine.handle import EngineHandle
from dijiang_runtime.engine.stream_table import StreamTable
from dijiang_runtime.errors import DiJiangError, EngineDeadError, ModelLoadError

logger = logging.getLogger(__name__)

MAX_FAILED_LOADS = 5
"""Loads that may fail one after the other before the engine is given up."""

MAX_PAUSE_SECONDS = 30.0
STABLE_SECONDS = 60.0
"""An engine that lived this long, or has finished a request, is started again at once when it dies:
it is of use. Pauses are for one that does nothing but die."""


class EngineProcess(EngineHandle):
    """An `EngineClient` over a supervised child process.

    A process that exits or hangs ends every open request with `EngineDeadError` and is replaced:
    at once the first time, then after growing pauses while new ones keep dying.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        max_failed_loads: int = MAX_FAILED_LOADS,
        first_pause_seconds: float = 0.5,
    ) -> None:
        super().__init__()
        self._config = config
        self._max_failed_loads = max_failed_loads
        self._first_pause_seconds = first_pause_seconds
        self._child: EngineChild | None = None
        self._num_finished = 0
        """Requests that the last engine has finished."""
        self._ready = asyncio.Event()
        self._supervisor: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Return when the process is started and has begun to load. `start` waits for the rest."""
        self._supervisor = asyncio.create_task(self._supervise())
        while self.pid is None and not self._supervisor.done():
            await asyncio.sleep(0)

    async def start(self) -> None:
        """Return when the engine is ready for the first time. Raises as `EngineClient.start`."""
        if self._supervisor is None:
            await self.begin()
        assert self._supervisor is not None, "it has begun"
        ready = asyncio.create_task(self._ready.wait())
        await asyncio.wait({ready, self._supervisor}, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        if self._supervisor.done():
            self._supervisor.result()

    async def stop(self, *, grace_seconds: float = 0.0) -> None:
        """Let running requests finish for so long, then end the process."""
        self._stopping = True
        if self._streams is not None:
            await self._streams.wait_until_empty(grace_seconds)
        if self._supervisor is not None:
            self._supervisor.cancel()
            with contextlib.suppress(asyncio.CancelledError, DiJiangError):
                await self._supervisor
            self._supervisor = None

    @property
    def pid(self) -> int | None:
        """The process id of the engine, while it has one."""
        return self._child.pid if self._child else None

    async def wait_failed(self) -> None:
        """Wait until the engine is given up, and raise why."""
        assert self._supervisor is not None, "wait_failed before start"
        await asyncio.shield(self._supervisor)

    async def _supervise(self) -> None:
        """Keep an engine running until cancelled. Ends by raising why it is given up."""
        loop = asyncio.get_running_loop()
        num_failed_loads = num_deaths = 0
        while True:
            try:
                lived_since = loop.time()
                reason = await self._run_child()
            except (ModelLoadError, EngineDeadError) as exc:
                num_failed_loads += 1
                hopeless = isinstance(exc, ModelLoadError) and self._info is None
                if hopeless or num_failed_loads >= self._max_failed_loads:
                    logger.error("giving the engine up after %d failed loads", num_failed_loads)
                    raise
                logger.error("the engine could not load: %s", exc)
                pause = self._pause(num_failed_loads)
            else:
                logger.error("the engine process %s; starting another", reason)
                num_failed_loads = 0
                was_of_use = self._num_finished or loop.time() - lived_since > STABLE_SECONDS
                num_deaths = 1 if was_of_use else num_deaths + 1
                pause = self._pause(num_deaths - 1)
            self.num_restarts += 1
            self._tell_watchers()
            await asyncio.sleep(pause)

    async def _run_child(self) -> str:
        """Run one process to its end, and return what that was."""
        child = EngineChild(self._config, self._on_step)
        gently = False
        try:
            self._child = child
            self._num_finished = 0
            info = await child.load()
            self._begin(info, StreamTable(info, child.send))
            self._ready.set()
            logger.info("engine ready in process %s", child.pid)
            return await child.watch()
        except asyncio.CancelledError:
            gently = True
            raise
        finally:
            # Clients are told first: ending a process that hangs may take a moment.
            if self._streams is not None:
                self._num_finished = self._streams.num_finished
            self._end()
            await child.close(gently=gently)
            self._child = None

    def _pause(self, num_failures: int) -> float:
        """Seconds to wait before the next start: none at first, then doubling."""
        if num_failures == 0:
            return 0.0
        return min(MAX_PAUSE_SECONDS, self._first_pause_seconds * 2.0 ** min(num_failures - 1, 10))
