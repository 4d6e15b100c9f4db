"""The engine's own loop: take what clients say, step, tell the news. Runs in a process or thread.

Its messages are the heartbeat, and they come from between two steps: an engine that hangs inside
one is silent, however many threads it has.
"""

import logging
import time
from typing import Protocol

from dijiang_runtime.engine.engine import Engine
from dijiang_runtime.engine.messages import (
    Abort,
    AddRequest,
    ClientMessage,
    EngineMessage,
    Shutdown,
    StepDone,
)
from dijiang_runtime.engine.stream import failure
from dijiang_runtime.errors import DiJiangError
from dijiang_runtime.request import RequestOutput

logger = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 0.1
GRAMMAR_POLL_SECONDS = 0.002
"""How soon a grammar that was compiled is noticed while nothing else is to do."""


class Channel(Protocol):
    """The engine's end of the line to its client."""

    def receive(self, timeout_seconds: float) -> list[ClientMessage]:
        """Return what has arrived; wait for something, at most so long, if nothing has."""
        ...

    def send(self, message: EngineMessage) -> None:
        """Send without waiting."""
        ...


def run(engine: Engine, channel: Channel) -> None:
    """Serve a channel until the client says `Shutdown`."""
    next_beat = time.monotonic()
    while True:
        # Blocks while there is nothing to do, and wakes at once for a new request.
        idle_seconds = 0.0 if engine.has_work else max(0.0, next_beat - time.monotonic())
        if engine.only_awaits_grammars:
            idle_seconds = GRAMMAR_POLL_SECONDS
        outputs = []
        for message in channel.receive(idle_seconds):
            if isinstance(message, Shutdown):
                return
            outputs.extend(_handle(engine, message))
        if engine.has_work:
            outputs.extend(engine.step())
        is_beat = time.monotonic() >= next_beat
        if outputs or is_beat:
            # The end of the last request is told with the gauges that it leaves behind.
            stats = engine.take_stats() if is_beat or not engine.has_work else None
            channel.send(StepDone(tuple(outputs), stats))
        if is_beat:
            next_beat = time.monotonic() + HEARTBEAT_SECONDS


def _handle(engine: Engine, message: AddRequest | Abort) -> list[RequestOutput]:
    if isinstance(message, Abort):
        output = engine.abort(message.request_id)
        return [output] if output else []
    try:
        engine.add_request(message.request)
    except DiJiangError as exc:
        request_id = message.request.request_id
        logger.warning("request %s refused: %s", request_id, type(exc).__name__)
        return [failure(request_id, exc)]
    return []
