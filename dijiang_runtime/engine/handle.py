"""What every handle on an engine does alike, wherever its engine runs. Knows no torch."""

from collections.abc import Callable

from dijiang_runtime.engine.messages import EngineInfo, EngineStats, StepDone
from dijiang_runtime.engine.stream import RequestStream
from dijiang_runtime.engine.stream_table import StreamTable
from dijiang_runtime.errors import EngineDeadError
from dijiang_runtime.request import Request


class EngineHandle:
    """The streams of an engine while it is ready, and what it has last told of itself.

    Starting, stopping and watching the engine is left to the handles that build on this.
    """

    def __init__(self) -> None:
        self._info: EngineInfo | None = None
        self._streams: StreamTable | None = None
        self._stats = EngineStats()
        self._subscribers: list[Callable[[EngineStats], None]] = []
        self._watchers: list[Callable[[], None]] = []
        self._stopping = False
        self.num_restarts = 0

    def generate(self, request: Request) -> RequestStream:
        """Begin a request. Raises as `EngineClient.generate` does."""
        if self._streams is None or self._stopping:
            raise EngineDeadError("The engine is not ready.")
        return self._streams.open(request)

    @property
    def info(self) -> EngineInfo:
        if self._info is None:
            raise EngineDeadError("The engine is not ready.")
        return self._info

    @property
    def last_info(self) -> EngineInfo | None:
        """Of the last engine that was ready; None if there was none yet."""
        return self._info

    @property
    def is_ready(self) -> bool:
        return self._streams is not None and not self._stopping

    @property
    def stats(self) -> EngineStats:
        return self._stats

    def subscribe(self, callback: Callable[[EngineStats], None]) -> None:
        self._subscribers.append(callback)

    def watch(self, callback: Callable[[], None]) -> None:
        """Call back whenever the engine has become ready, or has ceased to be."""
        self._watchers.append(callback)

    def _begin(self, info: EngineInfo, streams: StreamTable) -> None:
        """Take requests: the engine is ready."""
        self._info, self._streams = info, streams
        self._tell_watchers()

    def _end(self) -> None:
        """Take no more requests, and fail those that run: the engine is gone."""
        if self._streams is not None:
            self._streams.fail_all(EngineDeadError())
            self._streams = None
        self._stats = EngineStats(slots_total=self._stats.slots_total)
        self._tell_watchers()

    def _tell_watchers(self) -> None:
        for callback in self._watchers:
            callback()

    def _on_step(self, message: StepDone) -> None:
        """Hand on what a step has brought."""
        if self._streams is not None:
            self._streams.deliver(message.outputs)
        if message.stats is not None:
            self._stats = message.stats
            for callback in self._subscribers:
                callback(message.stats)
