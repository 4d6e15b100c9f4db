"""One engine process as its parent sees it: started, listened to, and ended."""

import asyncio
import asyncio.subprocess
import contextlib
import logging
import os
import sys
from collections.abc import Callable
from typing import Any

from dijiang_runtime.config import EngineConfig
from dijiang_runtime.engine.endpoint import Endpoint
from dijiang_runtime.engine.messages import (
    ClientMessage,
    EngineInfo,
    EngineStart,
    LoadFailed,
    Ready,
    Shutdown,
    StepDone,
    decode_engine_message,
    encode,
    encode_start,
)
from dijiang_runtime.errors import EngineDeadError, ModelLoadError
from dijiang_runtime.processes import exit_text

logger = logging.getLogger(__name__)

EXIT_SECONDS = 2.0
"""How long an engine that was told to leave may take before it is killed."""


class EngineChild:
    """Owns a child process and the line to it."""

    def __init__(self, config: EngineConfig, on_step: Callable[[StepDone], None]) -> None:
        self._config = config
        self._on_step = on_step
        self._endpoint = Endpoint()
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._last_heard = 0.0

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    async def load(self) -> EngineInfo:
        """Start the process and return when the engine is ready.

        Raises:
            ModelLoadError: the engine says that the model cannot be served.
            EngineDeadError: the process ended without a word, or took longer than it may.
        """
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "dijiang_runtime.engine.process",
            stdin=asyncio.subprocess.PIPE,
            # Away from the terminal's Ctrl-C: the parent decides when the engine ends.
            start_new_session=True,
            # Threads that wait must sleep: on a shared machine, spinning costs a hundredfold.
            env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ},
        )
        start = EngineStart(
            address=self._endpoint.address,
            config=self._config,
            log_level=logging.getLogger().getEffectiveLevel(),
        )
        assert self._process.stdin is not None
        self._process.stdin.write(encode_start(start))
        ready: asyncio.Future[EngineInfo] = asyncio.get_running_loop().create_future()
        self._reader = asyncio.create_task(self._read(ready))
        exited = asyncio.ensure_future(self._process.wait())
        either: set[asyncio.Future[Any]] = {ready, exited}
        timeout = self._config.load_timeout_seconds
        done, _ = await asyncio.wait(either, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            exited.cancel()
            raise EngineDeadError(f"The engine process did not load within {timeout:g} s.")
        if not ready.done():
            # What it said last may still be on its way.
            await asyncio.wait({ready}, timeout=0.2)
        if not ready.done():
            how = exit_text(exited.result())
            raise EngineDeadError(f"The engine process {how} while it loaded.")
        exited.cancel()
        return ready.result()

    async def watch(self) -> str:
        """Return when the process has ended or hangs, with what happened."""
        assert self._process is not None
        timeout = self._config.step_timeout_seconds
        exited = asyncio.ensure_future(self._process.wait())
        suspected_at: float | None = None
        try:
            while True:
                await asyncio.wait({exited}, timeout=min(0.25, timeout / 4))
                if exited.done():
                    return exit_text(exited.result())
                silence = asyncio.get_running_loop().time() - self._last_heard
                if silence <= timeout:
                    continue
                # Silent since the last look as well: it is not this process that was too busy to
                # listen.
                if suspected_at == self._last_heard:
                    return f"has been silent for {silence:.1f} s"
                suspected_at = self._last_heard
        finally:
            exited.cancel()

    def send(self, message: ClientMessage) -> None:
        """Send without waiting. Raises `EngineDeadError` if the engine does not take it."""
        if not self._endpoint.send(encode(message)):
            raise EngineDeadError("The engine does not take requests.")

    async def close(self, *, gently: bool = False) -> None:
        """End the process, if it has not, and remove everything that belonged to it."""
        if self._process is not None and self._process.returncode is None:
            if gently:
                with contextlib.suppress(EngineDeadError, TimeoutError):
                    self.send(Shutdown())
                    await asyncio.wait_for(self._process.wait(), EXIT_SECONDS)
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        self._endpoint.close()

    async def _read(self, ready: asyncio.Future[EngineInfo]) -> None:
        """Listen to the engine until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            message = decode_engine_message(await self._endpoint.receive())
            self._last_heard = loop.time()
            match message:
                case StepDone():
                    self._on_step(message)
                case Ready():
                    if not ready.done():
                        ready.set_result(message.info)
                case LoadFailed():
                    if not ready.done():
                        ready.set_exception(ModelLoadError(message.message))
                case _:
                    # The engine has said hello: both ends are connected.
                    self._endpoint.hide()
