"""What rows that want more than the likeliest token cost those that share a step with them.

Every contender is a decode step of as many sequences. In one all are plain; in the others some ask
for something. What such a step takes longer, every sequence in it waits longer for its token.
"""

import statistics
from collections.abc import Callable, Mapping
from typing import Any

from dijiang_runtime.bench.timing import now
from dijiang_runtime.engine.grammar import GrammarState
from dijiang_runtime.engine.model_runner import ModelRunner
from dijiang_runtime.engine.sampler import Sampler
from dijiang_runtime.engine.scheduler_output import ScheduledSequence, SchedulerOutput
from dijiang_runtime.engine.sequence import Sequence
from dijiang_runtime.engine.state_pool import StatePool
from dijiang_runtime.grammar import GrammarCompiler
from dijiang_runtime.models.serving import (
    ServingModel,
    decoder_of,
    logit_kernels,
    record_steps,
)
from dijiang_runtime.request import Grammar, GrammarKind, Request, SamplingParams
from dijiang_runtime.tokenizer import Tokenizer

PLAIN = "plain"
SHARP = 0.1
"""Random weights find nearly all tokens about equally likely. At this temperature few are."""

PAIRS_PER_ROUND = 8
SCHEMA = Grammar(
    GrammarKind.JSON_SCHEMA,
    '{"type": "object", "required": ["name", "tags"], "properties": {"name": {"type": "string"}, '
    '"tags": {"type": "array", "items": {"enum": ["a", "b", "c"]}}}}',
)
KINDS: Mapping[str, SamplingParams] = {
    "temperature": SamplingParams(),
    "top_k 40": SamplingParams(top_k=40),
    "top_p 0.9": SamplingParams(top_p=0.9, temperature=SHARP),
    "top_p 0.9, flat": SamplingParams(top_p=0.9),
    "logit bias": SamplingParams(temperature=0.0, logit_bias=dict.fromkeys(range(100), 1.0)),
    "penalties": SamplingParams(temperature=0.0, repetition_penalty=1.1),
    "5 logprobs": SamplingParams(temperature=0.0, logprobs=5),
    "JSON schema": SamplingParams(temperature=0.0, grammar=SCHEMA),
    "JSON, drawn": SamplingParams(grammar=SCHEMA),
}
POSITION = 100


class NeighboursBench:
    """Owns a model, its states, and sequences of every kind."""

    def __init__(self, model: ServingModel, tokenizer: Tokenizer, batch: int) -> None:
        self._model = model
        self._batch = batch
        device = decoder_of(model).embed_tokens.weight.device
        pool = StatePool(model.config.state, batch, device, model.num_pending_tokens)
        recorded = record_steps(model, pool.states, pool.scratch)
        self._runner = ModelRunner(recorded, pool, Sampler((), logit_kernels(model)))
        *self._opening, self._letter = tokenizer.encode('{"name": "a', add_special_tokens=False)
        eos = tokenizer.eos_ids or (0,)
        self._compiler = GrammarCompiler(tokenizer, model.config.vocab_size, eos)

    def run(self, rounds: int) -> list[dict[str, Any]]:
        """For each kind, with one such row and with a quarter of them: seconds of a step, and what
        it takes longer than a step of plain rows alone, as a share of that.

        A step is compared with the plain one right before or after it, and the share is the median
        of these. Plain rows are compared with plain rows as well: what that gives is the noise.
        """
        plain = self._step(PLAIN, 0)
        steps = {
            (kind, num): self._step(kind, num)
            for kind in (PLAIN, *KINDS)
            for num in (1, self._batch // 4)
        }
        found: dict[tuple[str, int], list[tuple[float, float]]] = {key: [] for key in steps}
        for step in (plain, *steps.values()):
            step()
        for _ in range(rounds):
            for key, step in steps.items():
                step()  # In an engine the step before was of the same kind.
                pairs = [_time_pair(plain, step, swap=bool(i % 2)) for i in range(PAIRS_PER_ROUND)]
                found[key].extend(pairs)
        return [_summary(*key, pairs) for key, pairs in found.items()]

    def _step(self, kind: str, num: int) -> Callable[[], object]:
        kinds = [kind] * num + [PLAIN] * (self._batch - num)
        sequences = [self._sequence(k, slot) for slot, k in enumerate(kinds, start=1)]
        plan = SchedulerOutput(decodes=tuple(ScheduledSequence(s, 1) for s in sequences))
        grammars = [s.matcher for s in sequences if s.matcher is not None]

        def step() -> None:
            # The plan is not advanced, so that every call does the same; but what a grammar allows
            # at a place that it has seen is known already.
            for grammar in grammars:
                grammar.advance(self._letter)
            self._runner.execute(plan)

        return step

    def _sequence(self, kind: str, slot: int) -> Sequence:
        vocab_size = self._model.config.vocab_size
        request = Request(
            request_id=f"bench-{slot}",
            prompt_token_ids=tuple(i * 7919 % vocab_size for i in range(POSITION)),
            sampling=KINDS.get(kind, SamplingParams(temperature=0.0)),
            arrival_time=0.0,
        )
        sequence = Sequence(request, seed=slot, slot=slot)
        sequence.append(1)
        sequence.num_computed_tokens = POSITION
        if (grammar := request.sampling.grammar) is not None:
            sequence.matcher = GrammarState(self._compiler.compile(grammar))
            for token_id in self._opening:
                sequence.matcher.advance(token_id)
        return sequence


def _time_pair(
    plain: Callable[[], object], other: Callable[[], object], *, swap: bool
) -> tuple[float, float]:
    """Seconds of both, which run one after the other; `other` first if they are to be swapped."""
    if swap:
        seconds = _time(other)
        return _time(plain), seconds
    return _time(plain), _time(other)


def _time(step: Callable[[], object]) -> float:
    start = now()
    step()
    return now() - start


def _summary(kind: str, num: int, pairs: list[tuple[float, float]]) -> dict[str, Any]:
    costs = [other / plain - 1 for plain, other in pairs]
    lower, median, upper = statistics.quantiles(costs, n=4, method="inclusive")
    return {
        "kind": kind,
        "rows": num,
        "seconds": statistics.median(other for _, other in pairs),
        "plain_seconds": statistics.median(plain for plain, _ in pairs),
        "cost": {"median": median, "lower_quartile": lower, "upper_quartile": upper},
        "num_pairs": len(pairs),
    }
