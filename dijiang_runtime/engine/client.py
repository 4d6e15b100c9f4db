"""The handle on an engine that the API process holds, whatever stands behind it. Knows no torch.

`EngineProcess` runs the engine in a supervised child process, which is how a server runs it;
`InProcessEngine` runs it in a thread, for tests and for the command line. `EngineHost` shares an
engine out to other processes, each of which holds it as a `HostedEngine`.
"""

from collections.abc import Callable
from typing import Protocol

from dijiang_runtime.engine.host import EngineHost, Guest
from dijiang_runtime.engine.hosted import HostedEngine
from dijiang_runtime.engine.in_process import InProcessEngine
from dijiang_runtime.engine.messages import EngineInfo, EngineStats
from dijiang_runtime.engine.stream import RequestStream
from dijiang_runtime.engine.supervisor import EngineProcess
from dijiang_runtime.request import Request

__all__ = [
    "EngineClient",
    "EngineHost",
    "EngineInfo",
    "EngineProcess",
    "EngineStats",
    "Guest",
    "HostedEngine",
    "InProcessEngine",
    "RequestStream",
]


class EngineClient(Protocol):
    """What the server asks of an engine. Used from one event loop."""

    async def start(self) -> None:
        """Return when the engine is ready.

        Raises:
            ModelLoadError: the model cannot be served; trying again will not help.
            EngineDeadError: the engine died while it loaded, every time.
        """
        ...

    async def stop(self, *, grace_seconds: float = 0.0) -> None:
        """Take no more requests, let those that run finish for so long, then end the engine."""
        ...

    def generate(self, request: Request) -> RequestStream:
        """Begin a request. Whether there is room for it, `RequestStream.admitted` tells.

        Raises:
            InvalidRequestError: the request is wrong.
            EngineOverloadedError: the queue is full.
            EngineDeadError: the engine is not ready.
        """
        ...

    @property
    def info(self) -> EngineInfo:
        """The facts of the engine; of the last one that was ready while a new one loads.

        Raises:
            EngineDeadError: no engine was ready yet.
        """
        ...

    @property
    def is_ready(self) -> bool:
        """Whether a request would be run now."""
        ...

    @property
    def stats(self) -> EngineStats:
        """The latest gauges."""
        ...

    @property
    def num_restarts(self) -> int:
        """How many times the engine was started again."""
        ...

    async def wait_failed(self) -> None:
        """Wait until the engine is given up, and raise why. The server should exit then."""
        ...

    def subscribe(self, callback: Callable[[EngineStats], None]) -> None:
        """Call back with all further stats, in the event loop."""
        ...
