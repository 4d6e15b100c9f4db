"""The invariants hold over random runs, and the simulation catches known bugs."""

import logging
from collections.abc import Iterator

import pytest

from tests.simulation.campaign import REQUESTS_PER_WORLD, SOMETIMES, fails, run_seeds
from tests.simulation.mutations import MUTATIONS
from tests.simulation.world import World

CI_REQUESTS = 100_000
NUM_PARTS = 10

KNOWN_SEEDS = [
    # An abort in mid-step ended the sequence's text before the step did, and the engine died.
    (0, 60),
    # The world sent an id twice that the engine had just given up: the world's mistake.
    (1771, 149),
]
"""Seeds that failed once, with the fewest requests that showed it.

A world draws more than it did then, so these seeds are other runs now. The first bug is still
caught as a mutation ("an abort in mid-step frees the slot at once"); the second was the world's.
"""


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """The engine logs every failed request, and here thousands fail on purpose."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("part", range(NUM_PARTS))
def test_every_invariant_holds_in_every_step_of_100_000_requests(part: int) -> None:
    num_worlds = CI_REQUESTS // REQUESTS_PER_WORLD // NUM_PARTS
    seen = run_seeds(range(part * num_worlds, (part + 1) * num_worlds))
    assert [situation for situation in SOMETIMES if not seen[situation]] == []


@pytest.mark.parametrize(("seed", "num_requests"), KNOWN_SEEDS)
def test_a_seed_that_failed_once_does_not_fail_again(seed: int, num_requests: int) -> None:
    World(seed, num_requests).run()


def test_a_seed_is_one_run() -> None:
    assert World(7, 200).run() == World(7, 200).run()


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_planted_bug_is_caught(name: str) -> None:
    with MUTATIONS[name]():
        assert any(fails(seed, REQUESTS_PER_WORLD) for seed in range(100))
