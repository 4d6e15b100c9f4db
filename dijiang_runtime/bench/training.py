"""The training operator against the quadratic parallel form: forward and backward, by length.

The parallel form computes all scores of a sequence at once, [T, T] for every head, as the authors'
code does; autograd keeps them for the backward pass.
"""

import ctypes
import gc
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from dijiang_runtime.bench.facts import describe_machine
from dijiang_runtime.bench.timing import Timing, alternate
from dijiang_runtime.ops.training import chunkwise

Attend = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

# Decay, scores and weighted scores, and a gradient of each: what stands at once in `parallel`.
_SCORE_MATRICES = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingBenchOptions:
    """What to measure: one attention layer of the `dijiang` preset, its projections left out."""

    lengths: tuple[int, ...] = (128, 256, 512, 1024, 2048, 4096, 8192, 16_384)
    batch: int = 1
    heads: int = 1
    """A head costs both forms alike; of the parallel one, more do not fit at 16,384 tokens."""
    head_dim: int = 64
    rounds: int = 7

    def score_bytes(self, length: int) -> int:
        """About what the parallel form holds at once."""
        return _SCORE_MATRICES * 4 * self.batch * self.heads * length * length


def run(options: TrainingBenchOptions, progress: Callable[[str], None]) -> dict[str, Any]:
    """Measure both forms at every length. The result is plain data, ready for JSON.

    The parallel form is left out where its scores would not fit into the free memory.
    """
    rows = []
    for length in options.lengths:
        progress(f"training at length {length:,}")
        rows.append(_row(options, length))
    return {"machine": describe_machine(), "options": asdict(options), "training_by_length": rows}


def parallel(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> Tensor:
    """`chunkwise` with all scores at once. Shapes as there, as many query heads as key heads."""
    place = torch.arange(q.shape[1], dtype=log_decay.dtype)
    lag = place[:, None] - place
    decay = (log_decay[:, None, None] * lag).masked_fill(lag < 0, float("-inf")).exp()
    scores = q.transpose(1, 2) @ k.permute(0, 2, 3, 1) * decay
    return (scores @ v.transpose(1, 2)).transpose(1, 2)


def _row(options: TrainingBenchOptions, length: int) -> dict[str, Any]:
    forms: dict[str, Attend] = {"chunkwise": chunkwise}
    if options.score_bytes(length) < 0.8 * psutil.virtual_memory().available:
        forms["parallel"] = parallel
    calls = {name: _call(form, options, length) for name, form in forms.items()}
    peaks = {name: peak_bytes(call) for name, call in calls.items()}
    timings = alternate(calls, rounds=options.rounds)
    row: dict[str, Any] = {"length": length, "ratio": None}
    for name in forms:
        tokens = options.batch * length
        row[name] = _figures(tokens, timings[name], peaks[name])
    if "parallel" in forms:
        row["ratio"] = timings["parallel"].median / timings["chunkwise"].median
    return row


def _figures(tokens: int, timing: Timing, peak: int | None) -> dict[str, Any]:
    return {
        "tokens_per_second": tokens / timing.median,
        "peak_bytes": peak,
        "seconds": asdict(timing),
    }


def _call(form: Attend, options: TrainingBenchOptions, length: int) -> Callable[[], None]:
    """One forward and backward pass, the decay's gradient included."""
    generator = torch.Generator().manual_seed(length)

    def normal(size: int) -> Tensor:
        return torch.randn(options.batch, length, options.heads, size, generator=generator)

    features = 2 * options.head_dim
    values = normal(options.head_dim + 1)
    half_lives = torch.logspace(0, 9, options.heads, base=2) if options.heads > 1 else 64.0
    log_decay = -torch.log(torch.tensor(2.0)) / half_lives * torch.ones(options.heads)
    inputs = [normal(features).softmax(-1), normal(features).softmax(-1), values, log_decay]
    for x in inputs:
        x.requires_grad_()
    upstream = normal(options.head_dim + 1)

    def call() -> None:
        for x in inputs:
            x.grad = None
        torch.autograd.backward(form(*inputs), upstream)

    return call


def peak_bytes(call: Callable[[], object]) -> int | None:
    """Memory that a call takes at its highest, above what the process holds before it.

    None where the system does not tell (it is Linux that does).
    """
    call()  # What is set up once is not counted.
    gc.collect()
    try:
        # What the allocator keeps of earlier calls would hide what this one takes.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # The peak starts anew.
    except (OSError, AttributeError):
        return None
    before = int(psutil.Process().memory_info().rss)
    call()
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return max(0, 1024 * int(peak.split()[1]) - before)
