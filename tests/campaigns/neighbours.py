"""Random neighbours never change an answer: `python -m tests.campaigns.neighbours --mixes 100000`.

Each mix is one request that ran among others, drawn and timed at random, in an engine of random
size; its text, tokens and log-probs must be those of the same request alone, to the last bit.
"""

import argparse
import os
import random
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import torch

from dijiang_runtime.config import EngineConfig
from dijiang_runtime.engine.engine import Engine
from dijiang_runtime.request import Request
from tests.campaigns.report import Report, add_out
from tests.conftest import save_tiny_model
from tests.engine.requests import random_requests
from tests.engine.test_determinism import Answer, run_alone, run_together
from tests.small_models import FAMILIES

NUM_REQUESTS = 192
REQUESTS_PER_RUN = 64
SLOTS = (5, 16, 33, 64)
BUDGETS = (64, 200, 512)


@cache
def alone(model: Path) -> tuple[list[Request], dict[str, Answer]]:
    """The requests, and what each gets alone. Made once in each process."""
    torch.set_num_threads(1)
    requests = random_requests(seed=11, num_requests=NUM_REQUESTS, max_prompt_tokens=96)
    return requests, run_alone(make_engine(model, 4, 512), requests)


@cache
def make_engine(model: Path, slots: int, budget: int) -> Engine:
    """An engine is used for many runs, so that its states have a past."""
    config = EngineConfig(model=model, max_slots=slots, max_batched_tokens=budget, num_threads=1)
    return Engine.from_config(config)


def run(task: tuple[Path, int]) -> tuple[int, list[str]]:
    """How many mixes one seed made, and the requests whose answers changed."""
    model, seed = task
    requests, expected = alone(model)
    rng = random.Random(seed)
    chosen = rng.sample(requests, rng.randint(REQUESTS_PER_RUN // 2, REQUESTS_PER_RUN))
    engine = make_engine(model, rng.choice(SLOTS), rng.choice(BUDGETS))
    got = run_together(engine, chosen, seed=seed)
    return len(chosen), [f"seed {seed}: {r}" for r, answer in got.items() if answer != expected[r]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mixes", type=int, default=100_000)
    parser.add_argument("--family", choices=FAMILIES, default="gpt_neox", help="of the model")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    add_out(parser)
    options = parser.parse_args()
    of_family = f"{options.mixes:,} mixes of {options.family}"
    report = Report(f"neighbours: {of_family}", options.out)
    # Every seed is a run of its own, so a later one may go on from any.
    saved = {"mixes": 0, "seed": 0, "changed": [], **report.saved}
    num_mixes, seed, changed = saved["mixes"], saved["seed"], saved["changed"]
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(options.workers) as pool:
        model = save_tiny_model(Path(folder), **FAMILIES[options.family])
        while num_mixes < options.mixes:
            tasks: list[Any] = [(model, seed + i) for i in range(20 * options.workers)]
            seed += len(tasks)
            for num, wrong in pool.map(run, tasks):
                num_mixes += num
                changed += wrong
            report.figure("mixes so far, changed", f"{num_mixes:,}, {len(changed)}")
            report.save({"mixes": num_mixes, "seed": seed, "changed": changed})
    report.check(not changed, f"{len(changed)} answers changed: {changed[:3]}")
    return report.end()


if __name__ == "__main__":
    sys.exit(main())
