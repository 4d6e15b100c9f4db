"""A long campaign on all cores: `python -m tests.simulation --requests 1000000`."""

import argparse
import logging
import os
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor

from tests.simulation.campaign import REQUESTS_PER_WORLD, SOMETIMES, run_seeds

SEEDS_PER_TASK = 50


def main() -> int:
    """Run the campaign, print what was seen, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--first-seed", type=int, default=0)
    options = parser.parse_args()
    num_worlds = -(-options.requests // REQUESTS_PER_WORLD)
    last = options.first_seed + num_worlds
    tasks = [
        range(start, min(start + SEEDS_PER_TASK, last))
        for start in range(options.first_seed, last, SEEDS_PER_TASK)
    ]
    started, seen = time.monotonic(), Counter()
    # The engine logs every failed request, and here thousands fail on purpose.
    with ProcessPoolExecutor(os.cpu_count(), initializer=_silence) as pool:
        for counts in pool.map(run_seeds, tasks):
            seen += counts
    seconds = time.monotonic() - started
    num_requests = num_worlds * REQUESTS_PER_WORLD
    print(
        f"{num_requests:,} requests, 0 violations, "
        f"{seconds:.0f} s, {num_requests / seconds:,.0f} requests/s"
    )
    for situation in SOMETIMES:
        print(f"{seen[situation]:>10,}  {situation}")
    return 0 if all(seen[situation] for situation in SOMETIMES) else 1


def _silence() -> None:
    logging.disable(logging.CRITICAL)


if __name__ == "__main__":
    sys.exit(main())
