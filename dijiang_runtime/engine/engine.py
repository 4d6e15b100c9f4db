"""The engine: requests in, outputs out, one step at a time. Knows no sockets and no threads."""

import itertools
import logging
import secrets
import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from concurrent.futures import Future
from typing import Protocol, Self

import llguidance
import msgspec

from dijiang_runtime.config import CHUNK_SIZE, EngineConfig
from dijiang_runtime.engine.admission import QueueLimits, validate_request
from dijiang_runtime.engine.grammar import GrammarCache, GrammarState
from dijiang_runtime.engine.merge import merge_outputs
from dijiang_runtime.engine.messages import EngineInfo, EngineStats
from dijiang_runtime.engine.output_processor import OutputProcessor
from dijiang_runtime.engine.scheduler import Scheduler
from dijiang_runtime.engine.scheduler_output import SchedulerOutput
from dijiang_runtime.engine.sequence import Sequence, StepResult
from dijiang_runtime.engine.stats import StatsCollector
from dijiang_runtime.errors import DiJiangError, InvalidRequestError, RequestFailedError
from dijiang_runtime.grammar import GrammarCompiler
from dijiang_runtime.request import (
    FinishReason,
    Request,
    RequestError,
    RequestOutput,
    SamplingParams,
)
from dijiang_runtime.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


class StepRunner(Protocol):
    """What computes a step: `ModelRunner`, or a stand-in for tests."""

    def execute(self, plan: SchedulerOutput) -> list[StepResult]: ...


class Engine:
    """Owns the scheduler, the model runner and the text of every request.

    Call `add_request`, then `step` while `has_work`; every request ends with exactly one output
    that has a finish reason. Not thread-safe: `client.InProcessEngine` and `process` give it a
    thread or a process of its own.
    """

    def __init__(
        self,
        runner: StepRunner,
        tokenizer: Tokenizer,
        info: EngineInfo,
        *,
        max_batched_tokens: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.info = info
        self.tokenizer = tokenizer
        self._runner = runner
        self._clock = clock
        self._processor = OutputProcessor(tokenizer)
        self._stats = StatsCollector()
        self._grammars = GrammarCache(
            GrammarCompiler(tokenizer, info.vocab_size, info.eos_token_ids)
        )
        self._compiling: dict[str, tuple[Sequence, Future[llguidance.LLMatcher]]] = {}
        self._offline_ids = itertools.count()
        self.scheduler = Scheduler(
            num_slots=info.num_slots,
            max_batched_tokens=max_batched_tokens,
            limits=QueueLimits(info.max_queued_requests, info.max_queued_tokens),
            eos_token_ids=frozenset(info.eos_token_ids),
        )

    @classmethod
    def from_config(cls, config: EngineConfig) -> Self:
        """Load a model folder and warm it up.

        Raises:
            ModelLoadError: the folder cannot be served, or not with these options.
        """
        # Torch is imported here, so that whoever only talks to an engine need not load it.
        from dijiang_runtime.engine.loading import load

        loaded = load(config)
        engine = cls(
            loaded.runner,
            loaded.tokenizer,
            loaded.info,
            max_batched_tokens=config.max_batched_tokens,
        )
        engine.warm_up()
        return engine

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work

    @property
    def only_awaits_grammars(self) -> bool:
        """Whether there is work, but a step would do none of it until a grammar is compiled."""
        return self.scheduler.only_awaits_grammars

    def add_request(self, request: Request) -> None:
        """Accept a request.

        Raises:
            InvalidRequestError: the request is wrong.
            EngineOverloadedError: the queue is full.
        """
        info = self.info
        validate_request(
            request,
            vocab_size=info.vocab_size,
            max_model_len=info.max_model_len,
            max_logprobs=info.max_logprobs,
        )
        if self.scheduler.knows(request.request_id):
            raise InvalidRequestError(
                f"request_id {request.request_id} is running already.", param="request_id"
            )
        seed = request.sampling.seed
        sequence = Sequence(request, secrets.randbits(64) if seed is None else seed)
        self.scheduler.add(sequence)
        self._processor.add(sequence)
        if (grammar := request.sampling.grammar) is not None:
            self._compiling[request.request_id] = (sequence, self._grammars.compile(grammar))

    def abort(self, request_id: str) -> RequestOutput | None:
        """End a request early and return its last output.

        None if it has ended already, or if a step is computing it: then that step's outputs end it.
        """
        sequence = self.scheduler.abort(request_id, self._clock())
        if sequence is None:
            return None
        logger.info("request %s aborted", request_id)
        return self._processor.close(sequence) if sequence.is_finished else None

    def step(self) -> list[RequestOutput]:
        """Advance every running sequence by one step and return what is new."""
        now = self._clock()
        outputs = self._take_grammars(now)
        plan = self.scheduler.schedule(now)
        # Those for whom a slot is free are in the plan, however long they have waited.
        outputs += [self._processor.close(sequence) for sequence in self.scheduler.expire(now)]
        if plan.is_empty:
            return outputs
        started = time.perf_counter()
        results = self._runner.execute(plan)
        now = self._clock()
        self.scheduler.update(plan, results, now)
        for item, result in zip(plan, results, strict=True):
            if output := self._output(item.sequence, result, now):
                outputs.append(output)
        self._stats.add_step(plan, results, time.perf_counter() - started)
        return outputs

    def take_stats(self) -> EngineStats:
        """Return the gauges, and the counts since the last call."""
        slots, running = self.scheduler.slots, self.scheduler.running
        return self._stats.take(
            running=len(running),
            waiting=len(self.scheduler.waiting),
            awaiting_grammars=sum(s.awaits_grammar for s in self.scheduler.waiting.values()),
            slots_used=slots.num_used,
            slots_total=slots.num_slots,
            context_tokens=sum(sequence.num_computed_tokens for sequence in running.values()),
        )

    def warm_up(self) -> None:
        """Run a prompt and a few tokens, so that the first request is not the slow one."""
        started = time.perf_counter()
        length = min(CHUNK_SIZE + 1, self.info.max_model_len - 2)
        sampling = SamplingParams(max_tokens=2, temperature=1.0, ignore_eos=True, logprobs=0)
        [output] = self.generate([[0] * length], sampling)
        if output.finish_reason is FinishReason.ERROR:
            raise RequestFailedError("The model failed its first request.")
        seconds = time.perf_counter() - started
        self.info = msgspec.structs.replace(self.info, warmup_seconds=seconds)

    def generate(
        self, prompts: Seq[str | Seq[int]], sampling: SamplingParams
    ) -> list[RequestOutput]:
        """Answer prompts offline, as many at once as there are slots.

        Args:
            prompts: Texts, or lists of token ids.
            sampling: How to answer each of them.

        Returns:
            One whole output for each prompt, in order. One that failed has `error` set.

        Raises:
            InvalidRequestError: a prompt or a parameter is wrong; nothing was computed.
        """
        waiting = [self._offline_request(prompt, sampling) for prompt in prompts]
        outputs: dict[str, list[RequestOutput]] = {r.request_id: [] for r in waiting}
        waiting.reverse()
        while waiting or self.has_work:
            while waiting and self.scheduler.has_room_for(len(waiting[-1].prompt_token_ids)):
                self.add_request(waiting.pop())
            for output in self.step():
                outputs[output.request_id].append(output)
            # Nobody asks for them here, and they are kept until somebody does.
            self._stats = StatsCollector()
        return [merge_outputs(parts) for parts in outputs.values()]

    def _offline_request(self, prompt: str | Seq[int], sampling: SamplingParams) -> Request:
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        request = Request(
            request_id=f"offline-{next(self._offline_ids)}",
            prompt_token_ids=tuple(ids),
            sampling=sampling,
            arrival_time=self._clock(),
        )
        info = self.info
        validate_request(
            request,
            vocab_size=info.vocab_size,
            max_model_len=info.max_model_len,
            max_logprobs=info.max_logprobs,
        )
        return request

    def _take_grammars(self, now: float) -> list[RequestOutput]:
        """Let those whose grammar is compiled have a slot, and end those whose cannot be."""
        outputs = []
        for request_id, (sequence, compiled) in list(self._compiling.items()):
            if not (compiled.done() or sequence.is_finished):
                continue
            del self._compiling[request_id]
            if sequence.is_finished:
                continue
            if (error := compiled.exception()) is None:
                sequence.matcher = GrammarState(compiled.result())
                continue
            kind = InvalidRequestError if isinstance(error, DiJiangError) else RequestFailedError
            text = str(error) if isinstance(error, DiJiangError) else "The grammar failed."
            sequence.error = RequestError(kind.__name__, text)
            self.scheduler.finish(sequence, FinishReason.ERROR, now)
            outputs.append(self._processor.close(sequence))
        return outputs

    def _output(self, sequence: Sequence, result: StepResult, now: float) -> RequestOutput | None:
        """The news of one sequence after a step. A failure here is this sequence's alone."""
        output = None
        try:
            if result.error is None and not sequence.fenced:
                output, stop = self._processor.process(sequence, result)
                if stop is not None:
                    self.scheduler.finish(sequence, FinishReason.STOP, now, stop_reason=stop)
        except Exception:
            logger.exception("request %s: its tokens could not become text", sequence.request_id)
            sequence.error = RequestError(
                RequestFailedError.__name__, "The request failed inside the engine."
            )
            self.scheduler.finish(sequence, FinishReason.ERROR, now)
        return self._processor.close(sequence, output) if sequence.is_finished else output
