"""Decode and prefill throughput of the engine's own step.

What is timed is `ModelRunner.execute`: the batch, the model, the sampler and the commit, without
the scheduler and the text.
"""

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import asdict, dataclass
from typing import Any

from dijiang_runtime.bench.facts import describe_machine, describe_model
from dijiang_runtime.bench.timing import Timing, alternate, now
from dijiang_runtime.config import CHUNK_SIZE
from dijiang_runtime.engine.lookahead import LookAheadRunner
from dijiang_runtime.engine.model_runner import ModelRunner
from dijiang_runtime.engine.sampler import Sampler
from dijiang_runtime.engine.scheduler_output import ScheduledSequence, SchedulerOutput
from dijiang_runtime.engine.sequence import Sequence, StepResult
from dijiang_runtime.engine.state_pool import StatePool
from dijiang_runtime.errors import RequestFailedError
from dijiang_runtime.models.serving import (
    ServingModel,
    decoder_of,
    logit_kernels,
    record_steps,
)
from dijiang_runtime.request import Request, SamplingParams

NEAR, FAR = 100, 100_000
"""Positions at which decode is compared."""

_STEPS_AHEAD = 64
"""So many decodes of one call follow each other; all but the first are begun ahead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """What to measure."""

    batches: tuple[int, ...] = (1, 8, 32)
    prompt_lengths: tuple[int, ...] = (128, 512, 2048)
    rounds: int = 15
    full: bool = False
    """Really run a prompt of `FAR` tokens; otherwise its position is only claimed."""
    max_batched_tokens: int = 512
    looks_ahead: bool | None = None
    """Begin decodes ahead, as the engine does by default: on a GPU. See `engine/lookahead.py`."""


Progress = Callable[[str], None]


class Bench:
    """Owns a model, its states and what is measured on them."""

    def __init__(self, model: ServingModel, options: BenchOptions, progress: Progress) -> None:
        self._model = model
        self._options = options
        self._progress = progress
        device = decoder_of(model).embed_tokens.weight.device
        self._pool = StatePool(
            model.config.state, max(*options.batches, 2), device, model.num_pending_tokens
        )
        recorded = record_steps(model, self._pool.states, self._pool.scratch)
        sampler = Sampler((), logit_kernels(model))
        # A prompt is timed without the decode that would be begun after it.
        self._runner = runner = ModelRunner(recorded, self._pool, sampler)
        self._looks_ahead = options.looks_ahead
        if self._looks_ahead is None:
            self._looks_ahead = device.type == "cuda"
        self._decoder = LookAheadRunner(runner) if self._looks_ahead else runner

    def run(self) -> dict[str, Any]:
        """Measure everything. The result is plain data, ready for JSON."""
        return {
            "machine": describe_machine(),
            "model": describe_model(decoder_of(self._model)),
            "options": asdict(self._options),
            "decode_by_batch": self._decode_by_batch(),
            "decode_by_position": self._decode_by_position(),
            "prefill_by_length": self._prefill_by_length(),
            "state_copy": self._state_copy(),
        }

    def decode_seconds(self, batch: int, position: int, steps: int) -> float:
        """Seconds per step of so many sequences at a position, over so many steps or a few more."""
        decode = self._decode([(position, slot) for slot in range(1, batch + 1)])
        start = now()
        num_calls = -(-steps // self.steps_per_call)
        for _ in range(num_calls):
            decode()
        return (now() - start) / (num_calls * self.steps_per_call)

    def prefill_seconds(self, length: int) -> float:
        """Seconds that a prompt takes."""
        return self._prefill(self._sequence(length, slot=1))

    def _decode_by_batch(self) -> list[dict[str, Any]]:
        self._progress("decode by batch")
        decodes = {
            b: self._decode([(NEAR, slot) for slot in range(1, b + 1)])
            for b in self._options.batches
        }
        timings = self._alternate(decodes, self.steps_per_call)
        return [_row({"batch": b}, timing, b) for b, timing in timings.items()]

    def _decode_by_position(self) -> dict[str, Any] | None:
        limit = self._model.config.position_limit
        if limit is not None and limit <= FAR:
            return None
        result: dict[str, Any] = {"prompt_was_run": self._options.full}
        if self._options.full:
            self._progress(f"prefill of {FAR:,} tokens")
            self._prefill(self._sequence(NEAR, slot=1))
            seconds = self._prefill(self._sequence(FAR, slot=2))
            result |= {"prefill_seconds": seconds, "prefill_tokens_per_second": FAR / seconds}
        self._progress("decode by position")
        decodes = {NEAR: self._decode([(NEAR, 1)]), FAR: self._decode([(FAR, 2)])}
        timings = self._alternate(decodes, self.steps_per_call)
        rows = [_row({"position": p}, timing, 1) for p, timing in timings.items()]
        result["rows"] = rows
        result["ratio"] = rows[1]["tokens_per_second"] / rows[0]["tokens_per_second"]
        # Slots have one size, allocated once: these bytes are all that either position takes.
        result["state_bytes"] = StatePool.bytes_per_slot(
            self._model.config.state, self._model.num_pending_tokens
        )
        return result

    def _prefill_by_length(self) -> list[dict[str, Any]]:
        self._progress("prefill by length")
        contenders = {
            length: lambda length=length: self._prefill(self._sequence(length, slot=1))
            for length in self._options.prompt_lengths
        }
        timings = self._alternate(contenders)
        return [_row({"length": n}, timing, n) for n, timing in timings.items()]

    def _state_copy(self) -> dict[str, Any]:
        """What it takes to give a sequence another one's state, as each of `n` answers gets that of
        their prompt, and to empty a slot for the next sequence."""
        self._progress("state copies")
        contenders: dict[str, Callable[[], object]] = {
            "copy": lambda: self._pool.fork(1, 2),
            "empty": lambda: self._pool.reset((2,)),
        }
        timings = alternate(contenders, rounds=self._options.rounds)
        num_bytes = self._model.config.state.num_bytes
        return {
            "bytes": num_bytes,
            "copy_seconds": asdict(timings["copy"]),
            "empty_seconds": asdict(timings["empty"]),
            "copied_bytes_per_second": num_bytes / timings["copy"].median,
        }

    @property
    def steps_per_call(self) -> int:
        """Steps of which one writes the states, or so many that all but the first of them are begun
        ahead: what they take is an average over these."""
        if self._looks_ahead:
            return _STEPS_AHEAD
        return self._model.num_pending_tokens + 1

    def _sequence(self, num_prompt_tokens: int, *, slot: int, num_decoded: int = 0) -> Sequence:
        """A sequence past its prompt and so many tokens, with one that it has not read."""
        vocab_size = self._model.config.vocab_size
        request = Request(
            request_id=f"bench-{slot}",
            prompt_token_ids=tuple(i * 7919 % vocab_size for i in range(num_prompt_tokens)),
            sampling=SamplingParams(temperature=0.0, max_tokens=_STEPS_AHEAD + 1),
            arrival_time=0.0,
        )
        sequence = Sequence(request, seed=0, slot=slot)
        for _ in range(num_decoded + 1):
            sequence.append(1)
        sequence.num_computed_tokens = num_prompt_tokens + num_decoded
        return sequence

    def _decode(self, places: Seq[tuple[int, int]]) -> Callable[[], object]:
        """`steps_per_call` steps from a position on, of a sequence for each position and slot."""
        if self._looks_ahead:
            return self._decode_ahead(places)
        plans = []
        for number in range(self.steps_per_call):
            sequences = [self._sequence(p, slot=s, num_decoded=number) for p, s in places]
            decodes = tuple(ScheduledSequence(sequence, 1) for sequence in sequences)
            plans.append(SchedulerOutput(decodes=decodes))

        def call() -> None:
            # Every call reads the same tokens at the same positions, from the states that the last
            # one committed.
            for plan in plans:
                self._execute(plan, self._decoder)

        return call

    def _decode_ahead(self, places: Seq[tuple[int, int]]) -> Callable[[], object]:
        """The same, of sequences that move on, so that a plan finds its step begun."""
        sequences = [self._sequence(p, slot=s) for p, s in places]
        plan = SchedulerOutput(decodes=tuple(ScheduledSequence(s, 1) for s in sequences))

        def call() -> None:
            for sequence in sequences:
                del sequence.output_token_ids[1:]
                sequence.num_computed_tokens = sequence.num_prompt_tokens
            for _ in range(self.steps_per_call):
                for sequence, result in zip(
                    sequences, self._execute(plan, self._decoder), strict=True
                ):
                    assert result.token_id is not None, "a decode chooses a token"
                    sequence.append(result.token_id)
                    sequence.num_computed_tokens += 1

        return call

    def _execute(
        self, plan: SchedulerOutput, runner: ModelRunner | LookAheadRunner
    ) -> list[StepResult]:
        results = runner.execute(plan)
        for result in results:
            if result.error is not None:
                raise RequestFailedError(f"A measured step failed: {result.error.message}")
        return results

    def _prefill(self, sequence: Sequence) -> float:
        """Run a sequence's prompt from its start, in the chunks the server would. Seconds."""
        assert sequence.slot is not None
        budget = self._options.max_batched_tokens // CHUNK_SIZE * CHUNK_SIZE
        start = now()
        sequence.num_computed_tokens = 0
        new_slots: tuple[int, ...] = (sequence.slot,)
        while num_tokens := min(budget, sequence.num_uncomputed_prompt_tokens):
            item = ScheduledSequence(sequence, num_tokens)
            plan = SchedulerOutput(prefills=(item,), new_slots=new_slots)
            self._execute(plan, self._runner)
            sequence.num_computed_tokens += num_tokens
            new_slots = ()
        return now() - start

    def _alternate(
        self, contenders: Mapping[int, Callable[[], object]], steps_per_call: int = 1
    ) -> dict[int, Timing]:
        timings = alternate(contenders, rounds=self._options.rounds)
        return {key: timing.divided_by(steps_per_call) for key, timing in timings.items()}


def _row(key: dict[str, int], timing: Timing, num_tokens: int) -> dict[str, Any]:
    return {**key, "tokens_per_second": num_tokens / timing.median, "seconds": asdict(timing)}
