"""The engine's side of one client request: `n` sequences for each of its prompts."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Self

import msgspec

from dijiang_runtime.engine.client import RequestStream
from dijiang_runtime.errors import (
    EngineDeadError,
    EngineOverloadedError,
    QueueTimeoutError,
    RequestFailedError,
)
from dijiang_runtime.request import (
    NO_LOGPROBS,
    FinishReason,
    Request,
    RequestOutput,
    SamplingParams,
)
from server.choices import Choice
from server.context import ServerContext
from server.protocol.common import Usage
from server.protocol.sampling import EngineRequest, seed_of_choice
from server.sequence_meter import SequenceMeter

Batch = list[tuple[int, RequestOutput]]
"""Outputs that are ready together, each with the index of its choice."""


class Generation:
    """The sequences of one client request, running in the engine from the start.

    Made by `begin`, which returns when there is room for it.

    A context manager: leaving it aborts what still runs, so the client's leaving frees its slots.
    Neither that nor anything else on the way out awaits, because the task may be cancelled.
    """

    def __init__(
        self, context: ServerContext, requests: Sequence[Request], body: EngineRequest
    ) -> None:
        self._requests = requests
        self._context = context
        self._num_sequences = body.num_sequences
        self.deadline = deadline_of(context, body)
        """When the answer must be complete, by the clock of the event loop; None is never."""
        self._streams: list[RequestStream] = []
        self._pumps: list[asyncio.Task[None]] = []
        self._meters = [
            # A prompt counts once, however many answers it has.
            SequenceMeter(
                context.metrics.sequences, request, counts_prompt=i % body.num_sequences == 0
            )
            for i, request in enumerate(requests)
        ]
        self._num_output_tokens = [0] * len(requests)

    @classmethod
    async def begin(
        cls, context: ServerContext, requests: Sequence[Request], body: EngineRequest
    ) -> Self:
        """Hand all requests to the engine, or none.

        Args:
            requests: `num_sequences` for each prompt, those of one prompt next to each other.

        Raises:
            InvalidRequestError, EngineOverloadedError, EngineDeadError: as the engine says.
        """
        generation = cls(context, requests, body)
        metrics = context.metrics
        try:
            for request in requests:
                generation._streams.append(context.engine.generate(request))
            for stream in generation._streams:
                await stream.admitted()
        except BaseException as exc:
            generation._abort()
            if isinstance(exc, EngineOverloadedError):
                metrics.admission_rejected("queue_full")
            elif isinstance(exc, EngineDeadError):
                metrics.admission_rejected("engine_not_ready")
            raise
        metrics.sequences.params_n.observe(body.num_choices)
        metrics.sequences.params_max_tokens.observe(requests[0].sampling.max_tokens)
        return generation

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._abort()

    def usage(self) -> Usage:
        """The tokens so far. A prompt counts once, however many choices it has."""
        prompts = self._requests[:: self._num_sequences]
        num_prompt_tokens = sum(len(request.prompt_token_ids) for request in prompts)
        num_output_tokens = sum(self._num_output_tokens)
        return Usage(num_prompt_tokens, num_output_tokens, num_prompt_tokens + num_output_tokens)

    async def batches(self) -> AsyncIterator[Batch]:
        """Yield what is new, until every sequence has finished.

        Raises:
            RequestFailedError, QueueTimeoutError, EngineDeadError: one of the sequences failed, and
                with it all.
        """
        source = self._one_stream() if len(self._streams) == 1 else self._many_streams()
        try:
            async for batch in source:
                for index, output in batch:
                    self._note(index, output)
                yield batch
            longest = max(self._num_output_tokens)
            self._context.metrics.sequences.request_max_generation_tokens.observe(longest)
        except QueueTimeoutError:
            self._context.metrics.admission_rejected("queue_timeout")
            raise

    async def collect(self) -> list[Choice]:
        """Wait for the end, and return the answers in the order of the requests."""
        choices = [Choice() for _ in self._requests]
        async for batch in self.batches():
            for index, output in batch:
                choices[index].add(output)
        return choices

    async def _one_stream(self) -> AsyncIterator[Batch]:
        stream = self._streams[0]
        # Tokens that came apart stay apart, so that each has an event of its own.
        while outputs := await stream.unread():
            yield [(0, output) for output in outputs]

    async def _many_streams(self) -> AsyncIterator[Batch]:
        queue: asyncio.Queue[tuple[int, RequestOutput | Exception]] = asyncio.Queue()

        async def pump(index: int, stream: RequestStream) -> None:
            try:
                while outputs := await stream.unread():
                    for output in outputs:
                        queue.put_nowait((index, output))
            except Exception as exc:
                queue.put_nowait((index, exc))

        self._pumps = [asyncio.create_task(pump(*pair)) for pair in enumerate(self._streams)]
        num_running = len(self._streams)
        while num_running:
            ready = [await queue.get()]
            while not queue.empty():
                ready.append(queue.get_nowait())
            batch: Batch = []
            for index, item in ready:
                if isinstance(item, Exception):
                    raise item
                num_running -= item.finished
                batch.append((index, item))
            yield batch

    def _note(self, index: int, output: RequestOutput) -> None:
        self._meters[index].observe(output)
        self._num_output_tokens[index] = output.num_output_tokens
        if output.finish_reason is FinishReason.ABORT:
            raise RequestFailedError("The request was aborted by the server.")

    def _abort(self) -> None:
        for stream in self._streams:
            stream.abort()
        for pump in self._pumps:
            pump.cancel()


def make_requests(
    context: ServerContext,
    answer_id: str,
    prompts: Sequence[tuple[tuple[int, ...], SamplingParams]],
    body: EngineRequest,
    *,
    embed: bool = False,
) -> list[Request]:
    """`num_sequences` requests for each prompt, with seeds that differ from choice to choice.

    The engine knows them by the id of the answer, which is ours and unique, and their index in it.
    """
    arrival = time.time()
    return [
        Request(
            request_id=f"{answer_id}-{prompt_index * body.num_sequences + choice}",
            prompt_token_ids=token_ids,
            sampling=msgspec.structs.replace(sampling, seed=seed_of_choice(sampling.seed, choice)),
            arrival_time=arrival,
            priority=body.priority or 0,
            embed=embed,
            group=group if sampling.prompt_logprobs == NO_LOGPROBS else None,
            max_queue_seconds=context.config.max_queue_seconds or None,
        )
        for prompt_index, (token_ids, sampling) in enumerate(prompts)
        for group in (f"{answer_id}-{prompt_index}" if body.num_sequences > 1 else None,)
        for choice in range(body.num_sequences)
    ]


def deadline_of(context: ServerContext, body: EngineRequest) -> float | None:
    """The earlier of the server's limit, of which 0 is none, and what the client wants, by the
    clock of the event loop."""
    limits = [seconds for seconds in (context.config.max_request_seconds, body.timeout) if seconds]
    return asyncio.get_running_loop().time() + min(limits) if limits else None
