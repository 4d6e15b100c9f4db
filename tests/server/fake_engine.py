"""An engine without a model: it answers every request from a script, at once or when told to."""

import asyncio
import struct
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from dijiang_runtime.engine.admission import validate_request
from dijiang_runtime.engine.messages import EngineInfo, EngineStats
from dijiang_runtime.errors import EngineDeadError
from dijiang_runtime.request import (
    NO_LOGPROBS,
    FinishReason,
    PositionLogprobs,
    Request,
    RequestOutput,
    RequestTimings,
    TokenLogprob,
)
from dijiang_runtime.tokenizer import Tokenizer

Script = Callable[[Request], Sequence[RequestOutput | Exception]]

INFO = EngineInfo(
    vocab_size=300,
    max_model_len=200,
    max_logprobs=20,
    bos_token_id=None,
    eos_token_ids=(256,),
    num_slots=4,
    state_bytes_per_sequence=4096,
    state_bytes_total=16384,
    parent_kv_cache_bytes_per_token=512,
    num_parameters=1_234_567,
    num_layers=2,
    hidden_size=16,
    family="gpt_neox",
    device="cpu",
    dtype="float32",
    num_threads=2,
    max_queued_requests=8,
    max_queued_tokens=1000,
    load_seconds=0.5,
    warmup_seconds=0.25,
)


class FakeStream:
    """The outputs of one request. `gate` holds them back while it is not set."""

    def __init__(
        self,
        request: Request,
        outputs: Sequence[RequestOutput | Exception],
        gate: asyncio.Event,
        num_at_once: int,
    ) -> None:
        self.request = request
        self._num_at_once = num_at_once
        self.aborted = False
        self.num_read = 0
        self._outputs = list(outputs)
        self._gate = gate

    async def admitted(self) -> None:
        """There is always room; `FakeEngine.raises` refuses before."""

    async def unread(self) -> list[RequestOutput]:
        await asyncio.sleep(0)
        await self._gate.wait()
        if not self._outputs:
            return []
        read: list[RequestOutput] = []
        while self._outputs and len(read) < self._num_at_once:
            item = self._outputs.pop(0)
            self.num_read += 1
            if isinstance(item, Exception):
                raise item
            read.append(item)
        return read

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.abort()

    def abort(self) -> None:
        self.aborted = self.aborted or bool(self._outputs)
        self._outputs.clear()


class FakeEngine:
    """Implements `EngineClient`. `requests` and `streams` are what it was asked."""

    def __init__(self, tokenizer: Tokenizer, answer: str = " there was a cat") -> None:
        self.tokenizer = tokenizer
        self.answer = answer
        self.script: Script = self.tell
        self.requests: list[Request] = []
        self.streams: list[FakeStream] = []
        self.num_at_once = 1
        """Outputs that a reader finds whenever it looks."""
        self.raises: Exception | None = None
        self.raises_after = 0
        """How many requests are taken before `raises` is raised."""
        self.is_ready = True
        self.stats = EngineStats(
            running=1, waiting=2, slots_used=3, slots_total=4, context_tokens=500
        )
        self.gate = asyncio.Event()
        self.gate.set()
        self._subscribers: list[Callable[[EngineStats], None]] = []
        self.num_restarts = 0
        self._given_up: asyncio.Future[None] | None = None

    @property
    def info(self) -> EngineInfo:
        if not self.is_ready:
            raise EngineDeadError
        return INFO

    async def start(self) -> None:
        self.is_ready = True

    async def stop(self, *, grace_seconds: float = 0.0) -> None:
        self.is_ready = False

    async def wait_failed(self) -> None:
        self._given_up = asyncio.get_running_loop().create_future()
        await self._given_up

    def give_up(self, reason: Exception) -> None:
        """Fail for good, as an engine does that keeps dying."""
        assert self._given_up is not None
        self._given_up.set_exception(reason)

    def subscribe(self, callback: Callable[[EngineStats], None]) -> None:
        self._subscribers.append(callback)

    def report(self, stats: EngineStats) -> None:
        for callback in self._subscribers:
            callback(stats)

    def generate(self, request: Request) -> FakeStream:
        if self.raises is not None and len(self.requests) >= self.raises_after:
            raise self.raises
        validate_request(
            request,
            vocab_size=INFO.vocab_size,
            max_model_len=INFO.max_model_len,
            max_logprobs=INFO.max_logprobs,
        )
        stream = FakeStream(request, self.script(request), self.gate, self.num_at_once)
        self.requests.append(request)
        self.streams.append(stream)
        return stream

    def tell(self, request: Request) -> list[RequestOutput | Exception]:
        """The answer, one token an output, cut at `max_tokens`."""
        sampling = request.sampling
        if request.embed:
            return [self.embedding(request)]
        ids = self.tokenizer.encode(self.answer)
        is_cut = len(ids) > sampling.max_tokens
        ids = ids[: sampling.max_tokens]
        outputs = [
            RequestOutput(
                request_id=request.request_id,
                text=self.tokenizer.decode([token_id]),
                token_ids=(token_id,),
                logprobs=(
                    None
                    if sampling.logprobs == NO_LOGPROBS
                    else (self.position(token_id, sampling.logprobs),)
                ),
                prompt_logprobs=self.of_prompt(request) if i == 0 else None,
                num_prompt_tokens=len(request.prompt_token_ids),
                num_output_tokens=i + 1,
            )
            for i, token_id in enumerate(ids)
        ]
        last = RequestOutput(
            request_id=request.request_id,
            prompt_logprobs=None if outputs else self.of_prompt(request),
            finish_reason=FinishReason.LENGTH if is_cut else FinishReason.STOP,
            num_prompt_tokens=len(request.prompt_token_ids),
            num_output_tokens=len(ids),
            num_copied_tokens=self.num_copied(request),
            timings=RequestTimings(
                arrival=request.arrival_time,
                scheduled=request.arrival_time,
                first_token=request.arrival_time,
                finished=time.time(),
            ),
        )
        return [*outputs, last]

    def num_copied(self, request: Request) -> int:
        """Of a group, all but the first begin with a copy of its state."""
        is_first = all(earlier.group != request.group for earlier in self.requests)
        return 0 if request.group is None or is_first else len(request.prompt_token_ids)

    def embedding(self, request: Request) -> RequestOutput:
        """Which says how many tokens it is of."""
        values = (float(len(request.prompt_token_ids)), *[0.5] * (INFO.hidden_size - 1))
        return RequestOutput(
            request_id=request.request_id,
            finish_reason=FinishReason.LENGTH,
            num_prompt_tokens=len(request.prompt_token_ids),
            embedding=struct.pack(f"<{len(values)}f", *values),
        )

    def of_prompt(self, request: Request) -> tuple[PositionLogprobs | None, ...] | None:
        num_alternatives = request.sampling.prompt_logprobs
        if num_alternatives == NO_LOGPROBS:
            return None
        rest = request.prompt_token_ids[1:]
        return (None, *(self.position(token_id, num_alternatives) for token_id in rest))

    def position(self, token_id: int, num_alternatives: int) -> PositionLogprobs:
        top = tuple(self.logprob(i, -0.5 - i) for i in range(num_alternatives))
        return PositionLogprobs(self.logprob(token_id, -1.5), top)

    def logprob(self, token_id: int, logprob: float) -> TokenLogprob:
        data = self.tokenizer.token_bytes(token_id)
        return TokenLogprob(token_id, data.decode(errors="replace"), data, logprob)
