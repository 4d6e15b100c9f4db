"""Kept seeds: for each planted bug, the first world that shows it, cut to the fewest requests.

They replay the bug in a moment, and must pass without it. When a world draws other numbers than it
did, they are other runs, and their test says so: `python -m tests.simulation.seeds` finds new ones.
"""

import json
import logging
from itertools import count
from pathlib import Path

from tests.simulation.campaign import REQUESTS_PER_WORLD, fails, shrink
from tests.simulation.mutations import MUTATIONS

FILE = Path(__file__).with_name("seeds.json")


def kept_seeds() -> dict[str, tuple[int, int]]:
    """By the bug's name: the seed, and how many requests its world receives."""
    return {name: tuple(pair) for name, pair in json.loads(FILE.read_text("utf-8")).items()}


def find_seed(name: str) -> tuple[int, int]:
    """The first seed that shows a planted bug, and the fewest requests that do."""
    with MUTATIONS[name]():
        seed = next(seed for seed in count() if fails(seed, REQUESTS_PER_WORLD))
        return seed, shrink(seed, REQUESTS_PER_WORLD)


def main() -> None:
    logging.disable(logging.CRITICAL)
    lines = (f"  {json.dumps(name)}: {json.dumps(find_seed(name))}" for name in MUTATIONS)
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
