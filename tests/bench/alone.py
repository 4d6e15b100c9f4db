"""Measurements of memory in a process of their own."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import pytest

from dijiang_runtime.bench.training import peak_bytes


def peak_alone(call: Callable[[], object]) -> int:
    """`peak_bytes` of a function of a module, where no other test has left threads or memory.

    Skips the test where the system does not tell a process its peak.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        peak = pool.submit(peak_bytes, call).result()
    if peak is None:
        pytest.skip("this system does not tell a process its peak")
    return peak
