"""What the machine can do: bytes read and multiplications done per second, measured by torch.

Its own kernels, not ours, so that a fault of ours does not lower the ceiling.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from dijiang_runtime.bench.timing import now

LARGE_BYTES = 1 << 30
"""More than any cache holds."""
_SIDE = 2048
"""Of the square matrices that the matrix peak is measured with."""
_GPU_SIDE = 8192
_GPU_REPEATS = 16
"""A GPU is given so much at once: waiting for it takes as long as reading many megabytes."""
_CALLS = 3
_REST_SECONDS = 0.005
"""After which torch's threads no longer spin on the cores that the kernels need."""

CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Of the machine: bytes and operations (two per multiply-add) per second."""

    memory: float
    cached: float
    """Of an array as large as the weights, which partly stays in the caches."""
    matrix: float
    """Of a large product in the weights' format."""


def median_of(measured: Sequence[Ceilings]) -> Ceilings:
    return Ceilings(
        memory=statistics.median(c.memory for c in measured),
        cached=statistics.median(c.cached for c in measured),
        matrix=statistics.median(c.matrix for c in measured),
    )


class CeilingMeter:
    """Measures the ceilings whenever it is called, as the best of three calls of each."""

    def __init__(
        self, dtype: str, weight_bytes: int, *, threads: int, device: torch.device = CPU
    ) -> None:
        """
        Args:
            threads: Of torch while it measures; otherwise it has one.
        """
        self._threads = threads
        self._device = device
        self._repeats = 1 if device.type == "cpu" else _GPU_REPEATS
        self._large = torch.ones(LARGE_BYTES // 4, device=device)
        self._small = self._large[: max(1, weight_bytes // 4)]
        side = _SIDE if device.type == "cpu" else _GPU_SIDE
        if dtype == "int8":
            self._square = torch.randint(-127, 127, (side, side), dtype=torch.int8, device=device)
        else:
            self._square = torch.randn(side, side, device=device).to(getattr(torch, dtype))

    def __call__(self) -> Ceilings:
        if self._device.type == "cpu":
            torch.set_num_threads(self._threads)
        found = Ceilings(self._read(self._large), self._read(self._small), self._multiply())
        if self._device.type == "cpu":
            torch.set_num_threads(1)
            time.sleep(_REST_SECONDS)
        return found

    def _read(self, array: torch.Tensor) -> float:
        repeats = max(1, len(self._large) // len(array)) * self._repeats
        return array.nbytes * repeats / _best(lambda: [array.sum() for _ in range(repeats)])

    def _multiply(self) -> float:
        x = self._square
        if x.dtype == torch.int8:
            seconds = _best(lambda: [torch._int_mm(x, x) for _ in range(self._repeats)])
        else:
            seconds = _best(lambda: [x @ x for _ in range(self._repeats)])
        return 2 * len(x) ** 3 * self._repeats / seconds


def _best(call: Callable[[], object]) -> float:
    call()
    seconds = []
    for _ in range(_CALLS):
        start = now()
        call()
        seconds.append(now() - start)
    return min(seconds)
