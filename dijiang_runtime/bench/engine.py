"""Decode and prefill throughput of the engine's own step.

What is timed is `ModelRunner.execute`: the batch, the model, the sampler and the commit, without
the scheduler and the text.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from dijiang_runtime.bench.facts import describe_machine, describe_model
from dijiang_runtime.bench.timing import Timing, alternate
from dijiang_runtime.config import CHUNK_SIZE
from dijiang_runtime.engine.model_runner import ModelRunner
from dijiang_runtime.engine.sampler import Sampler
from dijiang_runtime.engine.scheduler import ScheduledSequence, SchedulerOutput
from dijiang_runtime.engine.sequence import Sequence
from dijiang_runtime.engine.state_pool import StatePool
from dijiang_runtime.errors import RequestFailedError
from dijiang_runtime.models.serving import ServingModel, decoder_of, record_steps
from dijiang_runtime.request import Request, SamplingParams

NEAR, FAR = 100, 100_000
"""Positions at which decode is compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """What to measure."""

    batches: tuple[int, ...] = (1, 8, 32)
    prompt_lengths: tuple[int, ...] = (128, 512, 2048)
    rounds: int = 15
    full: bool = False
    """Really run a prompt of `FAR` tokens; otherwise its position is only claimed."""
    max_batched_tokens: int = 512


Progress = Callable[[str], None]


class Bench:
    """Owns a model, its states and what is measured on them."""

    def __init__(self, model: ServingModel, options: BenchOptions, progress: Progress) -> None:
        self._model = model
        self._options = options
        self._progress = progress
        device = decoder_of(model).embed_tokens.weight.device
        self._pool = StatePool(model.config.state, max(*options.batches, 2), device)
        recorded = record_steps(model, self._pool.states, self._pool.scratch)
        self._runner = ModelRunner(recorded, self._pool, Sampler(()))

    def run(self) -> dict[str, Any]:
        """Measure everything. The result is plain data, ready for JSON."""
        return {
            "machine": describe_machine(),
            "model": describe_model(decoder_of(self._model)),
            "options": asdict(self._options),
            "decode_by_batch": self._decode_by_batch(),
            "decode_by_position": self._decode_by_position(),
            "prefill_by_length": self._prefill_by_length(),
        }

    def decode_seconds(self, batch: int, position: int, steps: int) -> float:
        """Seconds per step of so many sequences at a position."""
        plan = self._decode_plan([position] * batch)
        start = time.perf_counter()
        for _ in range(steps):
            self._execute(plan)
        return (time.perf_counter() - start) / steps

    def prefill_seconds(self, length: int) -> float:
        """Seconds that a prompt takes."""
        return self._prefill(self._sequence(length, slot=1))

    def _decode_by_batch(self) -> list[dict[str, Any]]:
        self._progress("decode by batch")
        plans = {b: self._decode_plan([NEAR] * b) for b in self._options.batches}
        timings = self._alternate({b: self._decode(plan) for b, plan in plans.items()})
        return [_row({"batch": b}, timing, b) for b, timing in timings.items()]

    def _decode_by_position(self) -> dict[str, Any] | None:
        limit = self._model.config.position_limit
        if limit is not None and limit <= FAR:
            return None
        near = self._sequence(NEAR, slot=1)
        far = self._sequence(FAR, slot=2)
        result: dict[str, Any] = {"prompt_was_run": self._options.full}
        if self._options.full:
            self._progress(f"prefill of {FAR:,} tokens")
            self._prefill(near)
            seconds = self._prefill(far)
            result |= {"prefill_seconds": seconds, "prefill_tokens_per_second": FAR / seconds}
        self._progress("decode by position")
        plans = {NEAR: _decodes([near]), FAR: _decodes([far])}
        timings = self._alternate({p: self._decode(plan) for p, plan in plans.items()})
        rows = [_row({"position": p}, timing, 1) for p, timing in timings.items()]
        result["rows"] = rows
        result["ratio"] = rows[1]["tokens_per_second"] / rows[0]["tokens_per_second"]
        # Slots have one size, allocated once: these bytes are all that either position takes.
        result["state_bytes"] = StatePool.bytes_per_slot(self._model.config.state)
        return result

    def _prefill_by_length(self) -> list[dict[str, Any]]:
        self._progress("prefill by length")
        contenders = {
            length: lambda length=length: self._prefill(self._sequence(length, slot=1))
            for length in self._options.prompt_lengths
        }
        timings = self._alternate(contenders)
        return [_row({"length": n}, timing, n) for n, timing in timings.items()]

    def _decode_plan(self, positions: list[int]) -> SchedulerOutput:
        return _decodes([self._sequence(p, slot=i + 1) for i, p in enumerate(positions)])

    def _sequence(self, num_prompt_tokens: int, *, slot: int) -> Sequence:
        """A sequence past its prompt, with one output token that it has not read."""
        vocab_size = self._model.config.vocab_size
        request = Request(
            request_id=f"bench-{slot}",
            prompt_token_ids=tuple(i * 7919 % vocab_size for i in range(num_prompt_tokens)),
            sampling=SamplingParams(temperature=0.0, max_tokens=2),
            arrival_time=0.0,
        )
        sequence = Sequence(request, seed=0, slot=slot)
        sequence.append(1)
        sequence.num_computed_tokens = num_prompt_tokens
        return sequence

    def _decode(self, plan: SchedulerOutput) -> Callable[[], object]:
        # The plan is not advanced: every call reads the same token at the same position, from the
        # state that the last one committed.
        return lambda: self._execute(plan)

    def _execute(self, plan: SchedulerOutput) -> None:
        for result in self._runner.execute(plan):
            if result.error is not None:
                raise RequestFailedError(f"A measured step failed: {result.error.message}")

    def _prefill(self, sequence: Sequence) -> float:
        """Run a sequence's prompt from its start, in the chunks the server would. Seconds."""
        assert sequence.slot is not None
        budget = self._options.max_batched_tokens // CHUNK_SIZE * CHUNK_SIZE
        start = time.perf_counter()
        sequence.num_computed_tokens = 0
        new_slots: tuple[int, ...] = (sequence.slot,)
        while num_tokens := min(budget, sequence.num_uncomputed_prompt_tokens):
            item = ScheduledSequence(sequence, num_tokens)
            self._execute(SchedulerOutput(prefills=(item,), new_slots=new_slots))
            sequence.num_computed_tokens += num_tokens
            new_slots = ()
        return time.perf_counter() - start

    def _alternate(self, contenders: Mapping[int, Callable[[], object]]) -> dict[int, Timing]:
        return alternate(contenders, rounds=self._options.rounds)


def _decodes(sequences: list[Sequence]) -> SchedulerOutput:
    return SchedulerOutput(decodes=tuple(ScheduledSequence(s, 1) for s in sequences))


def _row(key: dict[str, int], timing: Timing, num_tokens: int) -> dict[str, Any]:
    return {**key, "tokens_per_second": num_tokens / timing.median, "seconds": asdict(timing)}
