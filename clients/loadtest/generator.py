"""Makes the load: users that hold conversations, started by a plan or one after the other."""

import asyncio
import itertools
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass

from clients.loadtest.records import RequestRecord
from clients.loadtest.sender import RequestBuilder, Sender
from clients.loadtest.workloads import Conversation, Workload

FAILURE_PAUSE_SECONDS = 0.5
"""A closed loop would otherwise flood a server that refuses at once."""


@dataclass(frozen=True, slots=True)
class Span:
    """When a run begins to count, and when nothing more is sent.

    Args:
        warmup_seconds: Requests that should be sent before this are not measured.
        duration_seconds: For how long after that requests are sent.
        num_requests: At most so many conversations are begun after the warm-up.
    """

    warmup_seconds: float
    duration_seconds: float
    num_requests: int | None = None

    @property
    def end(self) -> float:
        return self.warmup_seconds + self.duration_seconds

    def is_too_many(self, num_measured: int) -> bool:
        return self.num_requests is not None and num_measured > self.num_requests


class Generator:
    """Holds the conversations of a workload with one server.

    Args:
        clock: Seconds since the run began.
        max_concurrency: At most so many requests run at once; the others wait, and that counts.
        first_index: Number of the first conversation.
    """

    def __init__(
        self,
        workload: Workload,
        builder: RequestBuilder,
        sender: Sender,
        span: Span,
        clock: Callable[[], float],
        max_concurrency: int | None = None,
        first_index: int = 0,
    ) -> None:
        self._workload, self._builder, self._sender = workload, builder, sender
        self._span, self._clock = span, clock
        self._first_index = first_index
        self._places = asyncio.Semaphore(max_concurrency) if max_concurrency else None

    async def open_loop(self, offsets: Iterable[float]) -> None:
        """Begin a conversation at every offset, whatever became of those before."""
        num_measured = 0
        async with asyncio.TaskGroup() as group:
            for index, at in enumerate(offsets, self._first_index):
                num_measured += at >= self._span.warmup_seconds
                if self._span.is_too_many(num_measured):
                    break
                if at >= self._span.end:
                    # The time in which nobody comes any more belongs to the span too.
                    await asyncio.sleep(self._span.end - self._clock())
                    break
                # Made before it is time, so that making it costs no lateness.
                conversation = self._workload.conversation(index)
                request = self._first_request(conversation)
                if (delay := at - self._clock()) > 0:
                    await asyncio.sleep(delay)
                group.create_task(self._converse(conversation, request, at))

    async def closed_loop(self, concurrency: int) -> None:
        """Keep `concurrency` conversations going: each user begins one when its last is over."""
        indices = itertools.count(self._first_index)
        num_measured = 0

        async def user() -> None:
            nonlocal num_measured
            while (now := self._clock()) < self._span.end:
                num_measured += now >= self._span.warmup_seconds
                if self._span.is_too_many(num_measured):
                    break
                conversation = self._workload.conversation(next(indices))
                request = self._first_request(conversation)
                if not await self._converse(conversation, request, None):
                    await asyncio.sleep(FAILURE_PAUSE_SECONDS)

        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(user())

    def _first_request(self, conversation: Conversation) -> bytes:
        turn = conversation.turns[0]
        return self._builder.build(conversation.prefix, [turn.text], turn.max_tokens)

    async def _converse(
        self, conversation: Conversation, request: bytes, intended: float | None
    ) -> bool:
        """Go through the turns, each once the answer before it is complete. False on failure."""
        said: list[str] = []
        for number, turn in enumerate(conversation.turns):
            said.append(turn.text)
            if number:
                intended = self._clock() + self._workload.options.think_seconds
                await asyncio.sleep(self._workload.options.think_seconds)
                if intended >= self._span.end:
                    break
                request = self._builder.build(conversation.prefix, said, turn.max_tokens)
            at = self._clock() if intended is None else intended
            record = RequestRecord(conversation.index, number, turn.max_tokens, at)
            async with AsyncExitStack() as stack:
                if self._places is not None:
                    await stack.enter_async_context(self._places)
                said.append(await self._sender.send(request, record))
            if record.error is not None:
                return False
        return True
