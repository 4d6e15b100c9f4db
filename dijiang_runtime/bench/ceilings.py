"""What the machine can do: bytes read and multiplications done per second, measured by torch.

Its own kernels, not ours, so that a fault of ours does not lower the ceiling.
"""

from collections.abc import Callable

import torch

from dijiang_runtime.bench.timing import now

LARGE_BYTES = 1 << 30
"""More than any cache holds."""
_SIDE = 2048
"""Of the square matrices that the matrix peak is measured with."""
_GPU_SIDE = 8192
_GPU_REPEATS = 16
"""A GPU is given so much at once: waiting for it takes as long as reading many megabytes."""
_ROUNDS = 9

CPU = torch.device("cpu")


def read_bandwidth(num_bytes: int, device: torch.device = CPU) -> float:
    """Bytes per second of reading an array of this size again and again: the best of some rounds.

    A small array partly stays in the caches, as a small model's weights do.
    """
    array = torch.ones(max(1, num_bytes // 4), device=device)
    repeats = max(1, LARGE_BYTES // 4 // num_bytes)
    if device.type != "cpu":
        repeats *= _GPU_REPEATS
    return 4 * len(array) * repeats / _best(lambda: [array.sum() for _ in range(repeats)])


def matrix_peak(dtype: str, device: torch.device = CPU) -> float:
    """Operations (two per multiply-add) per second of a large product in a weight format."""
    if device.type != "cpu":
        x = torch.randn(_GPU_SIDE, _GPU_SIDE, dtype=getattr(torch, dtype), device=device)
        seconds = _best(lambda: [x @ x for _ in range(_GPU_REPEATS)])
        return 2 * _GPU_SIDE**3 * _GPU_REPEATS / seconds
    if dtype == "int8":
        whole = torch.randint(-127, 127, (_SIDE, _SIDE), dtype=torch.int8)
        return 2 * _SIDE**3 / _best(lambda: torch._int_mm(whole, whole))
    x = torch.randn(_SIDE, _SIDE, dtype=getattr(torch, dtype))
    return 2 * _SIDE**3 / _best(lambda: x @ x)


def _best(call: Callable[[], object]) -> float:
    call()
    seconds = []
    for _ in range(_ROUNDS):
        start = now()
        call()
        seconds.append(now() - start)
    return min(seconds)
