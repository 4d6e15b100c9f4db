"""What the machine can do: bytes read and multiplications done per second, measured by torch.

Its own kernels, not ours, so that a fault of ours does not lower the ceiling.
"""

import time
from collections.abc import Callable

import torch

LARGE_BYTES = 1 << 30
"""More than any cache holds."""
_SIDE = 2048
"""Of the square matrices that the matrix peak is measured with."""
_ROUNDS = 9


def read_bandwidth(num_bytes: int) -> float:
    """Bytes per second of reading an array of this size again and again: the best of some rounds.

    A small array partly stays in the caches, as a small model's weights do.
    """
    array = torch.ones(max(1, num_bytes // 4))
    repeats = max(1, LARGE_BYTES // 4 // num_bytes)
    return 4 * len(array) * repeats / _best(lambda: [array.sum() for _ in range(repeats)])


def matrix_peak(dtype: str) -> float:
    """Operations (two per multiply-add) per second of a large product in a weight format."""
    if dtype == "int8":
        whole = torch.randint(-127, 127, (_SIDE, _SIDE), dtype=torch.int8)
        return 2 * _SIDE**3 / _best(lambda: torch._int_mm(whole, whole))
    x = torch.randn(_SIDE, _SIDE, dtype=getattr(torch, dtype))
    return 2 * _SIDE**3 / _best(lambda: x @ x)


def _best(call: Callable[[], object]) -> float:
    call()
    seconds = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
