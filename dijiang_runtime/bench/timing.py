"""Timing things side by side: in turns, round after round, so that a change in the machine's mood
meets all of them alike."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import psutil
import torch

Key = TypeVar("Key", bound=Hashable)

ROUND_SECONDS = 0.25
"""Calls are repeated until one timing takes about this long, so that the clock does not matter."""

MAX_FOREIGN_SHARE = 0.15
"""A round in which others used more than this share of the machine is not counted."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds per call of one contender over the rounds that count."""

    median: float
    lower_quartile: float
    upper_quartile: float
    num_rounds: int
    num_disturbed: int
    """Rounds in which others used the machine. They are left out, unless too few are left."""

    def divided_by(self, num: int) -> "Timing":
        """Of one of so many equal parts of a call."""
        return dataclasses.replace(
            self,
            median=self.median / num,
            lower_quartile=self.lower_quartile / num,
            upper_quartile=self.upper_quartile / num,
        )


def alternate(contenders: Mapping[Key, Callable[[], object]], *, rounds: int) -> dict[Key, Timing]:
    """Time each contender once a round, in turns, after a warm-up.

    A round that others disturbed is repeated, up to as many times again as were asked for; if the
    machine never comes to rest, all rounds count.
    """
    calls = {key: _calls_per_round(contender) for key, contender in contenders.items()}
    quiet: list[dict[Key, float]] = []
    disturbed: list[dict[Key, float]] = []
    while len(quiet) < rounds and len(quiet) + len(disturbed) < 2 * rounds:
        watch = ForeignLoad()
        seconds = _one_round(contenders, calls)
        (disturbed if watch.share() > MAX_FOREIGN_SHARE else quiet).append(seconds)
    num_disturbed = len(disturbed)
    kept = quiet if len(quiet) >= rounds else quiet + disturbed
    return {key: _timing([r[key] for r in kept], num_disturbed) for key in contenders}


def now() -> float:
    """Seconds on a clock, read when a GPU has done all that it was given."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


class ForeignLoad:
    """How much of the machine others have used since this was made."""

    def __init__(self) -> None:
        self._start = self._read()

    def share(self) -> float:
        """Busy time that is not ours, as a share of all cores' time."""
        wall, ours, busy = (b - a for a, b in zip(self._start, self._read(), strict=True))
        return max(0.0, busy - ours) / (wall * (psutil.cpu_count() or 1))

    @staticmethod
    def _read() -> tuple[float, float, float]:
        times = psutil.cpu_times()
        busy = times.user + times.system + getattr(times, "nice", 0.0)
        return time.perf_counter(), time.process_time(), busy


def _calls_per_round(contender: Callable[[], object]) -> int:
    contender()
    return max(1, round(ROUND_SECONDS / _time(contender)))


def _one_round(
    contenders: Mapping[Key, Callable[[], object]], calls: Mapping[Key, int]
) -> dict[Key, float]:
    """Mean seconds per call of each contender. Their calls take turns as long as both have some."""
    totals = dict.fromkeys(contenders, 0.0)
    for call in range(max(calls.values())):
        for key, contender in contenders.items():
            if call < calls[key]:
                totals[key] += _time(contender)
    return {key: total / calls[key] for key, total in totals.items()}


def _time(contender: Callable[[], object]) -> float:
    start = now()
    contender()
    return now() - start


def _timing(seconds: list[float], num_disturbed: int) -> Timing:
    lower, median, upper = statistics.quantiles(seconds, n=4, method="inclusive")
    return Timing(median, lower, upper, len(seconds), num_disturbed)
