"""Requests that break the model hurt nobody else: `python -m tests.campaigns.poison --rows 10000`.

Each poisoned row is an exception, or a NaN or infinity in its activations, logits or state, at a
random layer and step. It must fail with an error; its neighbours' answers must stay bit-identical.
Compiled steps and torch's take turns. A compiled step cannot be entered between its layers, so
there a bad activation is one from the start, in the token's embedding.
"""

import argparse
import logging
import os
import random
import sys
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from dijiang_runtime.config import EngineConfig
from dijiang_runtime.engine.engine import Engine
from dijiang_runtime.models.compiled import CompiledDecoder
from dijiang_runtime.ops.cpu.library import NO_TARGET, TARGET_VARIABLE
from dijiang_runtime.request import FinishReason, Request, RequestOutput
from tests.campaigns.report import Report, add_out
from tests.conftest import save_tiny_model
from tests.engine.requests import NUM_TOKENS, make_request
from tests.engine.test_determinism import Answer, answers
from tests.small_models import FAMILIES

NUM_NEIGHBOURS, NUM_CULPRITS = 24, 8
FAULTS = ("exception", "activation", "logits", "state")
POISON = {NUM_TOKENS - 1 - i: fault for i, fault in enumerate(FAULTS)}
"""Tokens that only culprits read, each with what happens in the step that reads it."""
ACTIVATION = next(token for token, fault in POISON.items() if fault == "activation")
CLEAN = NUM_TOKENS - len(FAULTS)


class Poisoned:
    """A model with faults. `layer`, `column` and `value` choose where and what."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._bad: Tensor | None = None
        self.layer, self.value, self.column = 0, float("nan"), 0
        self.config = model.config
        self.is_compiled = isinstance(model, CompiledDecoder)
        if self.is_compiled:
            self._embeddings = model.model.embed_tokens.weight
            return
        for number, layer in enumerate(model.layers):
            layer.register_forward_hook(self._hook(number))

    def _hook(self, number: int) -> Any:
        def hook(module: object, args: tuple[Any, ...], out: Tensor) -> Tensor:
            if number != self.layer or self._bad is None:
                return out
            return out.masked_fill(self._bad[:, None], self.value)

        return hook

    def hidden(self, token_ids: Tensor, positions: Tensor, recurrence: Any, tiles: Any) -> Tensor:
        faults = [POISON.get(token_id) for token_id in token_ids.tolist()]
        self._bad = torch.tensor([fault == "activation" for fault in faults])
        self._is_logit_bad = "logits" in faults
        for row, fault in enumerate(faults):
            if fault == "state":
                self._poison_state(recurrence, row)
        if self.is_compiled:
            # Nobody else reads it.
            self._embeddings[ACTIVATION] = self.value if "activation" in faults else 0.0
        hidden: Tensor = self._model.hidden(token_ids, positions, recurrence, tiles)
        self._bad = None
        if "exception" in faults:
            raise RuntimeError("planted")
        # A mark that the check of the hidden states lets through.
        hidden[[fault == "logits" for fault in faults]] = 3e38
        return hidden

    def logits(self, hidden: Tensor, tiles: Any) -> Tensor:
        bad = (hidden == 3e38).all(dim=1)
        logits = self._model.logits(hidden.masked_fill(bad[:, None], 0.0), tiles)
        return logits.masked_fill(bad[:, None], self.value)

    def _poison_state(self, recurrence: Any, row: int) -> None:
        """Damage the state of the sequence in `row` before the step reads it."""
        if row < len(recurrence.decode_source):
            source = int(recurrence.decode_source[row])
        else:
            [source] = [
                segment.source
                for segment in recurrence.prefills
                if segment.start <= row < segment.start + segment.length
            ]
        # The last column is the feature mass, which divides.
        recurrence.states[self.layer, source, 0, 0, self.column] = self.value


@cache
def made(model: Path, target: str | None) -> tuple[Engine, Poisoned, dict[str, Answer]]:
    """An engine that is used for all runs, its faulty model, and the neighbours' answers alone."""
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    config = EngineConfig(model=model, max_slots=NUM_NEIGHBOURS + NUM_CULPRITS, num_threads=1)
    with patch.dict(os.environ, {TARGET_VARIABLE: target} if target else {}):
        engine = Engine.from_config(config)
    runner: Any = engine._runner
    runner._model = Poisoned(runner._model)
    return engine, runner._model, answers(drive(engine, neighbours(), random.Random(0)))


def neighbours() -> list[Request]:
    rng = random.Random(5)
    return [
        make_request(
            f"n{i}",
            [rng.randrange(CLEAN) for _ in range(rng.randint(1, 90))],
            max_tokens=rng.randint(8, 20),
            temperature=rng.choice((0.0, 1.0)),
            seed=i,
            logprobs=2,
            logit_bias=dict.fromkeys(POISON, -100.0),
        )
        for i in range(NUM_NEIGHBOURS)
    ]


def culprit(name: str, rng: random.Random) -> Request:
    """Poison in the first chunk of its prompt, in a later one, or in its answer."""
    bad = rng.choice(list(POISON))
    prompt = [rng.randrange(CLEAN) for _ in range(rng.randint(1, 150))]
    if rng.random() < 0.6:
        # Only the last token of a prompt has logits.
        prompt[-1 if POISON[bad] == "logits" else rng.randrange(len(prompt))] = bad
        return make_request(name, prompt, max_tokens=8)
    # It says nothing but the bad token, from some step on.
    num_tokens = rng.randint(0, 6)
    bias = {bad: 100.0} | {t: -100.0 for t in POISON if t != bad}
    return make_request(
        name, prompt, max_tokens=20, temperature=0.0, logit_bias=bias, min_tokens=num_tokens
    )


def drive(engine: Engine, requests: list[Request], rng: random.Random) -> list[RequestOutput]:
    waiting, outputs = list(requests), []
    rng.shuffle(waiting)
    while waiting or engine.has_work:
        for _ in range(min(rng.randint(0, 6), len(waiting))):
            engine.add_request(waiting.pop())
        outputs.extend(engine.step())
    return outputs


def run(task: tuple[Path, int]) -> tuple[Counter[str], list[str]]:
    """How many of each fault one seed planted, and what went wrong."""
    model, seed = task
    engine, poisoned, expected = made(model, NO_TARGET if seed % 2 else None)
    rng = random.Random(seed)
    poisoned.layer, poisoned.column = rng.randrange(2), rng.choice((0, -1))
    poisoned.value = rng.choice((float("nan"), float("inf"), float("-inf")))
    culprits = [culprit(f"c{i}", rng) for i in range(NUM_CULPRITS)]
    got = answers(drive(engine, neighbours() + culprits, rng))
    planted: Counter[str] = Counter()
    wrong = []
    for request in culprits:
        planted[next(f for t, f in POISON.items() if is_poisoned(request, t))] += 1
        if got.pop(request.request_id).finish_reason is not FinishReason.ERROR:
            wrong.append(f"seed {seed}: {request.request_id} did not fail")
    wrong += [f"seed {seed}: {name} changed" for name in expected if got[name] != expected[name]]
    if engine.scheduler.slots.num_used:
        wrong.append(f"seed {seed}: slots are left")
    return planted, wrong


def is_poisoned(request: Request, token_id: int) -> bool:
    bias = request.sampling.logit_bias or {}
    return token_id in request.prompt_token_ids or bias.get(token_id) == 100.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--family", choices=FAMILIES, default="gpt_neox", help="of the model")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    add_out(parser)
    options = parser.parse_args()
    of_family = f"{options.rows:,} rows of {options.family}"
    report = Report(f"poison: {of_family}", options.out)
    planted: Counter[str] = Counter()
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(options.workers) as pool:
        model = save_tiny_model(Path(folder), **FAMILIES[options.family])
        tasks: list[Any] = [(model, seed) for seed in range(-(-options.rows // NUM_CULPRITS))]
        for number, (faults, found) in enumerate(pool.map(run, tasks), 1):
            planted += faults
            wrong += found
            if number % 100 == 0:
                report.figure("rows so far, wrong", f"{planted.total():,}, {len(wrong)}")
    for fault in FAULTS:
        report.figure(f"rows with a fault of kind {fault}", f"{planted[fault]:,}")
        report.check(planted[fault] > 0, f"no {fault} was ever planted")
    report.figure("answers of neighbours compared", f"{len(tasks) * NUM_NEIGHBOURS:,}")
    report.check(not wrong, f"{len(wrong)}: {wrong[:3]}")
    return report.end()


if __name__ == "__main__":
    sys.exit(main())
