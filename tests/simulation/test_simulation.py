"""The invariants hold over random runs, and the simulation catches known bugs."""

import logging
from collections.abc import Iterator

import pytest

from tests.simulation.campaign import REQUESTS_PER_WORLD, SOMETIMES, fails, run_seeds
from tests.simulation.mutations import MUTATIONS
from tests.simulation.seeds import kept_seeds
from tests.simulation.world import World

CI_REQUESTS = 100_000
NUM_PARTS = 10


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


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_kept_seed_shows_its_bug_and_nothing_else(name: str) -> None:
    seed, num_requests = kept_seeds()[name]
    with MUTATIONS[name]():
        is_shown = fails(seed, num_requests)
    assert is_shown, "The worlds have changed. Find new seeds: python -m tests.simulation.seeds"
    World(seed, num_requests).run()


def test_there_is_a_kept_seed_for_each_planted_bug() -> None:
    assert kept_seeds().keys() == MUTATIONS.keys()


def test_a_seed_is_one_run() -> None:
    assert World(7, 200).run() == World(7, 200).run()


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_planted_bug_is_caught(name: str) -> None:
    with MUTATIONS[name]():
        assert any(fails(seed, REQUESTS_PER_WORLD) for seed in range(100))
