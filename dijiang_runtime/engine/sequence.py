"""A request's life inside the engine. Knows no torch."""

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from dijiang_runtime.engine.masks import TokenMask
from dijiang_runtime.request import FinishReason, Request, RequestError, RequestTimings


class SequenceStatus(StrEnum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class RawLogprobs(NamedTuple):
    """One position's logprobs as the model runner reports them, before tokens become text."""

    token_id: int
    logprob: float
    top_ids: tuple[int, ...] = ()
    top_logprobs: tuple[float, ...] = ()


class SampledToken(NamedTuple):
    """What the sampler chose for one row."""

    token_id: int
    logprobs: RawLogprobs | None


class StepResult(NamedTuple):
    """What one step computed for one sequence."""

    token_id: int | None = None
    """The sampled token; None while the prompt is not finished."""
    logprobs: RawLogprobs | None = None
    prompt_logprobs: tuple[RawLogprobs, ...] = ()
    """For the prompt positions that this step predicted, in order."""
    pooled: npt.NDArray[np.float64] | None = None
    """The sum of the last hidden states of all prompt tokens so far, where it is wanted."""
    error: RequestError | None = None
    """Set when the step failed for this sequence; its state is as it was before."""
    deferred: bool = False
    """There was no state to take over: whoever was to compute it failed. Nothing has changed."""


class TokenHistory:
    """The tokens that a sequence's penalties look at, each once, with how often it was put out.

    Only kept where a penalty is used.
    """

    def __init__(self, prompt: Seq[int], output: Seq[int]) -> None:
        ids = np.unique(np.asarray(prompt, dtype=np.int64))
        self._num = len(ids)
        self._keep(ids, np.zeros(len(ids), dtype=np.float32))
        self._places = {token_id: place for place, token_id in enumerate(ids.tolist())}
        for token_id in output:
            self.add(token_id)

    @property
    def ids(self) -> npt.NDArray[np.int64]:
        """All that are in the prompt or the output."""
        return self._ids[: self._num]

    @property
    def output_counts(self) -> npt.NDArray[np.float32]:
        """How often each of them is in the output."""
        return self._counts[: self._num]

    def __len__(self) -> int:
        return self._num

    @property
    def addresses(self) -> tuple[int, int]:
        """Where the ids lie, 64 bits each, and the counts, float32."""
        return self._addresses

    def _keep(self, ids: npt.NDArray[np.int64], counts: npt.NDArray[np.float32]) -> None:
        self._ids, self._counts = ids, counts
        # Asking numpy takes microseconds, and every step wants to know.
        self._addresses = ids.ctypes.data, counts.ctypes.data

    def add(self, token_id: int) -> None:
        """Count a token of the output."""
        place = self._places.setdefault(token_id, self._num)
        if place == self._num:
            if place == len(self._ids):
                grown = 2 * place + 16
                self._keep(np.resize(self._ids, grown), np.resize(self._counts, grown))
            self._ids[place], self._counts[place] = token_id, 0
            self._num += 1
        self._counts[place] += 1


class Matcher(Protocol):
    """Where a sequence's answer is in its grammar; see `grammar.GrammarState`."""

    def advance(self, token_id: int) -> None:
        """Read the token that was sampled."""
        ...

    @property
    def is_complete(self) -> bool:
        """Whether the answer is whole and nothing may follow it."""
        ...


@dataclass(eq=False, slots=True)
class Sequence:
    """One request's tokens, progress and slot while it waits and runs.

    Changed by the scheduler alone, except for what the sampler remembers in `history`, `bias` and
    `allowed`.
    """

    request: Request
    seed: int
    slot: int | None = None
    status: SequenceStatus = SequenceStatus.WAITING
    num_computed_tokens: int = 0
    """Tokens, prompt first, that the committed recurrent state has read."""
    num_copied_tokens: int = 0
    """Those of them that came with a copy of another's state."""
    output_token_ids: list[int] = field(default_factory=list)
    history: TokenHistory | None = None
    bias: tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]] | None = None
    """The tokens of `logit_bias`, and what is added to each. Only kept where there are some."""
    allowed: TokenMask | None = None
    """The tokens that the request allows. Only kept where it does not allow all."""
    pooled: npt.NDArray[np.float64] | None = None
    """The sum of the prompt's hidden states, as far as it is computed, for an embedding."""
    matcher: Matcher | None = None
    """Of a request with a grammar, once that is compiled. Until then it waits."""
    completed_grammar: bool = False
    """Ended because the grammar lets nothing follow, by a token that belongs to the answer."""
    fenced: bool = False
    """Aborted while a step that uses the slot was in flight."""
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    error: RequestError | None = None
    scheduled_time: float = 0.0
    first_token_time: float = 0.0
    finished_time: float = 0.0
    num_prompt_tokens: int = field(init=False)
    changes_logits: bool = field(init=False)
    """Whether its parameters change its logits. Kept, as is the next: every step asks."""
    is_constrained: bool = field(init=False)
    """Whether not all tokens may come."""

    def __post_init__(self) -> None:
        self.num_prompt_tokens = len(self.request.prompt_token_ids)
        params = self.request.sampling
        self.changes_logits = params.has_bias or params.has_penalties
        self.is_constrained = params.allowed_token_ids is not None or params.grammar is not None

    @property
    def request_id(self) -> str:
        return self.request.request_id

    @property
    def awaits_grammar(self) -> bool:
        """Whether the grammar is still being compiled: the sequence may not have a slot yet."""
        return self.request.sampling.grammar is not None and self.matcher is None

    @property
    def num_uncomputed_prompt_tokens(self) -> int:
        return max(0, self.num_prompt_tokens - self.num_computed_tokens)

    @property
    def is_prefilling(self) -> bool:
        return self.num_computed_tokens < self.num_prompt_tokens

    @property
    def is_finished(self) -> bool:
        return self.status is SequenceStatus.FINISHED

    @property
    def next_position(self) -> int:
        """The absolute position of the token that will be sampled next."""
        return self.num_prompt_tokens + len(self.output_token_ids)

    @property
    def timings(self) -> RequestTimings:
        return RequestTimings(
            arrival=self.request.arrival_time,
            scheduled=self.scheduled_time,
            first_token=self.first_token_time,
            finished=self.finished_time,
        )

    def has_same_prompt(self, other: "Sequence") -> bool:
        """Whether this sequence's state after its prompt is the other's."""
        return self.request.prompt_token_ids == other.request.prompt_token_ids

    def tokens_to_compute(self, num_tokens: int) -> Seq[int]:
        """The next `num_tokens` tokens that the model has not read."""
        start = self.num_computed_tokens
        if start < self.num_prompt_tokens:
            return self.request.prompt_token_ids[start : start + num_tokens]
        return self.output_token_ids[start - self.num_prompt_tokens :]

    def append(self, token_id: int) -> None:
        """Add a sampled token to the output."""
        self.output_token_ids.append(token_id)
        if self.history is not None:
            self.history.add(token_id)
        if self.matcher is not None:
            self.matcher.advance(token_id)
