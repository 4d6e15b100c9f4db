"""Many seeds, and what to do with one that fails."""

from collections import Counter
from collections.abc import Iterable

from tests.simulation.world import World

REQUESTS_PER_WORLD = 200

SOMETIMES = (
    "aborted between steps, running",
    "aborted between steps, waiting",
    "aborted in mid-step",
    "duplicate id",
    "engine death",
    "failed row",
    "finished by EOS",
    "finished by length",
    "finished by stop string",
    "finished by stop token",
    "follower waited for its leader",
    "fork deferred",
    "forked",
    "group admitted in parts",
    "mixed step",
    "overtook by priority",
    "prompt split",
    "queue full",
    "refused: queue full",
    "waited too long",
)
"""Situations that a campaign must have gone through to mean anything."""


def run_seeds(seeds: Iterable[int], num_requests: int = REQUESTS_PER_WORLD) -> Counter:
    """Run one world for each seed, and return what was seen.

    Raises:
        AssertionError: with the seed, and the fewest requests that still show the violation.
    """
    seen: Counter = Counter()
    for seed in seeds:
        try:
            seen += World(seed, num_requests).run()
        except Exception as exc:
            fewest = shrink(seed, num_requests)
            message = f"World({seed}, {fewest}).run() fails: {type(exc).__name__}: {exc}"
            raise AssertionError(message) from exc
    return seen


def fails(seed: int, num_requests: int) -> bool:
    """Whether a world violates an invariant, or raises anything else."""
    try:
        World(seed, num_requests).run()
    except Exception:
        return True
    return False


def shrink(seed: int, num_requests: int) -> int:
    """The fewest requests with which the seed still fails."""
    return next(n for n in range(1, num_requests + 1) if n == num_requests or fails(seed, n))
