"""Watches the load tester itself, so that a report can say when it measured itself."""

import asyncio
import gc
import time
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from clients.loadtest.records import RequestRecord
from clients.loadtest.statistics import summarize

TICK_SECONDS = 0.01

MAX_CPU_SHARE = 0.8
"""Of one core. Above that, events queue up behind each other."""
MAX_LAG_SECONDS = 0.01
"""99th percentile of the delay with which this process sees what has arrived."""
MAX_LATENESS_SECONDS = 0.01
"""99th percentile of the delay with which requests are sent."""


class Monitor:
    """Samples how late the event loop runs, and the CPU time of the process."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._times = array("d")
        self._lags = array("d")
        self._cpu_seconds = array("d")

    async def watch(self) -> None:
        """Sample until cancelled."""
        while True:
            before = self._clock()
            await asyncio.sleep(TICK_SECONDS)
            now = self._clock()
            self._times.append(now)
            self._lags.append(max(0.0, now - before - TICK_SECONDS))
            self._cpu_seconds.append(time.process_time())

    def facts(self, start: float, end: float, records: list[RequestRecord]) -> dict[str, Any]:
        """How the load tester itself did between two moments, and whether that is good enough."""
        chosen = [i for i, at in enumerate(self._times) if start <= at <= end]
        share = 0.0
        if len(chosen) > 1:
            first, last = chosen[0], chosen[-1]
            cpu_seconds = self._cpu_seconds[last] - self._cpu_seconds[first]
            share = cpu_seconds / (self._times[last] - self._times[first])
        lag = summarize(waits(self._lags[i] for i in chosen))
        lateness = summarize(record.sent - record.intended for record in records)
        return {
            "cpu_share": share,
            "loop_lag": lag,
            "send_lateness": lateness,
            "warnings": list(_warnings(share, lag, lateness)),
        }


def waits(lags: Iterable[float]) -> Iterator[float]:
    """What bytes waited for that arrived at any moment, one in each tick.

    A process that stands still for a second takes one sample in that second. By itself it would
    count for nothing among hundreds; but whoever came in that second had to wait.
    """
    for lag in lags:
        while lag > TICK_SECONDS:
            yield lag
            lag -= TICK_SECONDS
        yield lag


def _warnings(
    share: float, lag: dict[str, Any] | None, lateness: dict[str, Any] | None
) -> Iterator[str]:
    if share > MAX_CPU_SHARE:
        yield (
            f"The load tester used {share:.0%} of a core, near the most that one process can. "
            "The latencies hold its own delays."
        )
    if lag and lag["p99"] > MAX_LAG_SECONDS:
        yield (
            f"The load tester ran late by up to {1e3 * lag['p99']:.0f} ms (99th percentile): "
            "latencies may be reported too long by that much. Give it a core of its own."
        )
    if lateness and lateness["p99"] > MAX_LATENESS_SECONDS:
        yield (
            f"Requests were sent up to {1e3 * lateness['p99']:.0f} ms late (99th percentile): the "
            "load was not quite the one that was planned. Latencies count from the planned time."
        )


@contextmanager
def undisturbed() -> Iterator[None]:
    """Keep the garbage collector from stopping the process for milliseconds, and let it open as
    many connections as the system allows."""
    _raise_file_limit()
    thresholds = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 1000)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()


def _raise_file_limit() -> None:
    # Not on every system is there such a limit, nor may it be raised.
    with suppress(ImportError, ValueError, OSError):
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
