"""What rows that want more than the likeliest token cost those that share a step with them.

Every contender is a decode step of as many sequences. In one all are plain; in the others some ask
for something. What such a step takes longer, every sequence in it waits longer for its token.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from dijiang_runtime.bench.timing import alternate
from dijiang_runtime.engine.grammar import GrammarState
from dijiang_runtime.engine.model_runner import ModelRunner
from dijiang_runtime.engine.sampler import Sampler
from dijiang_runtime.engine.scheduler import ScheduledSequence, SchedulerOutput
from dijiang_runtime.engine.sequence import Sequence
from dijiang_runtime.engine.state_pool import StatePool
from dijiang_runtime.grammar import GrammarCompiler
from dijiang_runtime.models.serving import ServingModel, decoder_of
from dijiang_runtime.request import Grammar, GrammarKind, Request, SamplingParams
from dijiang_runtime.tokenizer import Tokenizer

PLAIN = "plain"
KINDS: Mapping[str, SamplingParams] = {
    "temperature": SamplingParams(),
    "top_p 0.9": SamplingParams(top_p=0.9),
    "top_k 40": SamplingParams(top_k=40),
    "penalties": SamplingParams(temperature=0.0, repetition_penalty=1.1),
    "5 logprobs": SamplingParams(temperature=0.0, logprobs=5),
    "JSON schema": SamplingParams(temperature=0.0),
}
SCHEMA = Grammar(
    GrammarKind.JSON_SCHEMA,
    '{"type": "object", "required": ["name", "tags"], "properties": {"name": {"type": "string"}, '
    '"tags": {"type": "array", "items": {"enum": ["a", "b", "c"]}}}}',
)
POSITION = 100


class NeighboursBench:
    """Owns a model, its states, and sequences of every kind."""

    def __init__(self, model: ServingModel, tokenizer: Tokenizer, batch: int) -> None:
        self._model = model
        self._batch = batch
        device = decoder_of(model).embed_tokens.weight.device
        pool = StatePool(model.config.state, batch, device)
        self._runner = ModelRunner(model, pool, Sampler(()))
        self._answer = tokenizer.encode('{"name": "a', add_special_tokens=False)
        eos = tokenizer.eos_ids or (0,)
        self._compiler = GrammarCompiler(tokenizer, model.config.vocab_size, eos)

    def run(self, rounds: int) -> list[dict[str, Any]]:
        """For each kind, with one such row and with half of them: seconds of a step, and what it
        takes longer than a step of plain rows alone, as a share of that.

        Plain rows are measured beside themselves as well: what that gives is the noise.
        """
        contenders = {(PLAIN, 0): self._step(PLAIN, 0)}
        for kind in (PLAIN, *KINDS):
            for num in (1, self._batch // 2):
                contenders[kind, num] = self._step(kind, num)
        timings = alternate(contenders, rounds=rounds)
        plain = timings[PLAIN, 0].median
        return [
            {"kind": kind, "rows": num, "seconds": asdict(timing)}
            | {"cost": timing.median / plain - 1}
            for (kind, num), timing in timings.items()
        ]

    def _step(self, kind: str, num: int) -> Callable[[], object]:
        kinds = [kind] * num + [PLAIN] * (self._batch - num)
        sequences = [self._sequence(k, slot) for slot, k in enumerate(kinds, start=1)]
        plan = SchedulerOutput(decodes=tuple(ScheduledSequence(s, 1) for s in sequences))
        # The plan is not advanced: every call does the same.
        return lambda: self._runner.execute(plan)

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
        if kind == "JSON schema":
            sequence.matcher = GrammarState(self._compiler.compile(SCHEMA))
            for token_id in self._answer:
                sequence.matcher.advance(token_id)
        return sequence
