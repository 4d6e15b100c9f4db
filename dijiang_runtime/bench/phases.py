"""Where the microseconds of a step go: the kernels' phases, and what Python does around them."""

import ctypes
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dijiang_runtime.bench.engine import Bench, BenchOptions
from dijiang_runtime.bench.timing import now
from dijiang_runtime.models.compiled import CompiledDecoder
from dijiang_runtime.ops.cpu.library import PHASES
from dijiang_runtime.ops.cpu.sampling import RowScan, TokenSet

LOGITS, OTHER = "logits", "Python and torch"
PARTS = (*PHASES, LOGITS, OTHER)
POSITION = 128


class TimedDecoder(CompiledDecoder):
    """A compiled decoder that counts what its steps take while it is asked to."""

    def __init__(self, model: CompiledDecoder) -> None:
        """Shares `model`'s matrices."""
        super().__init__(model.model, model.context)
        self._logits_seconds = 0.0

    def start(self) -> None:
        """Count from nothing."""
        self.nanoseconds = (ctypes.c_int64 * len(PHASES))()
        self._logits_seconds = 0.0

    def stop(self) -> dict[str, float]:
        """Seconds of each phase of the layers, and of the logits, since `start`."""
        assert self.nanoseconds is not None, "it was started"
        seconds = {name: 1e-9 * ns for name, ns in zip(PHASES, self.nanoseconds, strict=True)}
        self.nanoseconds = None
        return {**seconds, LOGITS: self._logits_seconds}

    def chosen_logits(
        self,
        hidden: Tensor,
        rows: Sequence[int],
        masks: Sequence[TokenSet | None],
        temperatures: Sequence[float],
    ) -> tuple[Tensor, RowScan]:
        start = now()
        found = super().chosen_logits(hidden, rows, masks, temperatures)
        self._logits_seconds += now() - start
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseOptions:
    """What to take apart."""

    batches: tuple[int, ...] = (1, 8, 32)
    prompt_lengths: tuple[int, ...] = (2048,)
    rounds: int = 15
    turn_seconds: float = 0.1
    """About how long each turn takes."""


def measure_phases(
    model: CompiledDecoder, options: PhaseOptions, progress: Callable[[str], None]
) -> list[dict[str, Any]]:
    """For each batch and each prompt: seconds of the whole step or prompt and of its parts."""
    timed = TimedDecoder(model)
    bench = Bench(timed, BenchOptions(batches=options.batches), progress)
    found = []
    for batch in options.batches:
        progress(f"decode of {batch}")
        wanted = options.turn_seconds / bench.decode_seconds(batch, POSITION, 1)
        steps = bench.steps_per_call * max(1, round(wanted / bench.steps_per_call))

        def decode(batch: int = batch, steps: int = steps) -> tuple[float, int]:
            return bench.decode_seconds(batch, POSITION, steps) * steps, steps

        found.append({"batch": batch, **_take_apart(timed, decode, options.rounds)})
    for length in options.prompt_lengths:
        progress(f"prefill of {length:,}")

        def prefill(length: int = length) -> tuple[float, int]:
            return bench.prefill_seconds(length), 1

        found.append({"length": length, **_take_apart(timed, prefill, options.rounds)})
    return found


def _take_apart(
    timed: TimedDecoder, run: Callable[[], tuple[float, int]], rounds: int
) -> dict[str, Any]:
    """Medians of what one step takes, where `run` says how many seconds and steps it was."""
    run()
    wholes: list[float] = []
    parts: dict[str, list[float]] = {name: [] for name in PARTS}
    for _ in range(rounds):
        timed.start()
        seconds, num_steps = run()
        spent = timed.stop()
        spent[OTHER] = seconds - sum(spent.values())
        wholes.append(seconds / num_steps)
        for name in PARTS:
            parts[name].append(spent[name] / num_steps)
    medians = {name: statistics.median(values) for name, values in parts.items()}
    return {"seconds": statistics.median(wholes), "parts": medians}
