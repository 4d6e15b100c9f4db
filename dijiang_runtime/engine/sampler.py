"""Logits and each row's sampling parameters to token ids.

The order is that of vLLM: raw logprobs; logit bias and the masks of min_tokens and bad_words;
penalties; the mask of allowed_token_ids or of a grammar; greedy, or temperature, min_p, top_k,
top_p and a draw at one counted random number. So a row's token is a function of its own logits,
parameters, seed and position.

n rows    V vocabulary
"""

from collections.abc import Sequence as Seq
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dijiang_runtime.engine.drawing import draw
from dijiang_runtime.engine.grammar import GrammarState
from dijiang_runtime.engine.logprobs import raw_logprobs
from dijiang_runtime.engine.masks import TokenMask
from dijiang_runtime.engine.rng import uniform
from dijiang_runtime.engine.sequence import RawLogprobs, Sequence, TokenHistory
from dijiang_runtime.ops.cpu import sampling
from dijiang_runtime.request import NO_LOGPROBS, SamplingParams

# Below every logit, yet finite: a row of nothing else still has a distribution.
_MASKED = torch.finfo(torch.float32).min


class SampledToken(NamedTuple):
    token_id: int
    logprobs: RawLogprobs | None


class Sampler:
    """Chooses the next token of every row. Keeps nothing between calls."""

    def __init__(self, eos_token_ids: Seq[int]) -> None:
        self._eos_token_ids = tuple(eos_token_ids)

    def sample(
        self, logits: Tensor, sequences: Seq[Sequence], likeliest: Seq[int] | None = None
    ) -> list[SampledToken]:
        """Choose one token for each row.

        Args:
            logits: Shape [n, V], float32, finite. Overwritten.
            sequences: The sequence of each row.
            likeliest: The token with the largest logit of each row, where that is known already.
        """
        params = [sequence.request.sampling for sequence in sequences]
        reported = [i for i, p in enumerate(params) if p.logprobs != NO_LOGPROBS]
        # A copy of what is about to be changed; most often nothing is.
        adjusted = [i for i, sequence in enumerate(sequences) if _is_adjusted(sequence)]
        is_changed = not set(adjusted).isdisjoint(reported)
        raw_logits = logits[reported] if is_changed else logits
        self._adjust(logits, sequences, adjusted)
        token_ids = argmax(logits) if likeliest is None else list(likeliest)
        if likeliest is not None and (changed := [i for i in adjusted if params[i].is_greedy]):
            for i, token_id in zip(changed, argmax(logits, changed), strict=True):
                token_ids[i] = token_id
        random = [i for i, p in enumerate(params) if not p.is_greedy]
        if random:
            uniforms = [uniform(sequences[i].seed, sequences[i].next_position) for i in random]
            drawn = draw(logits, random, [params[i] for i in random], uniforms)
            for i, token_id in zip(random, drawn, strict=True):
                token_ids[i] = token_id
        logprobs: dict[int, RawLogprobs] = {}
        if reported:
            chosen = [token_ids[i] for i in reported]
            num_top = [params[i].logprobs for i in reported]
            rows = None if is_changed else reported
            found = raw_logprobs(raw_logits, chosen, num_top, rows)
            logprobs = dict(zip(reported, found, strict=True))
        return [SampledToken(token_id, logprobs.get(i)) for i, token_id in enumerate(token_ids)]

    def _adjust(self, logits: Tensor, sequences: Seq[Sequence], adjusted: Seq[int]) -> None:
        """Apply everything that changes these rows of logits [n, V], in place."""
        penalized = []
        for i in adjusted:
            sequence, params = sequences[i], sequences[i].request.sampling
            if _has_bias(params):
                self._bias(logits[i], sequence)
            if _has_penalties(params):
                penalized.append(i)
        if penalized and sampling.can_read(logits):
            for i in penalized:
                seen, params = _history(sequences[i]), sequences[i].request.sampling
                sampling.penalise(logits[i], seen, params, least=_MASKED)
        elif penalized:
            _penalize(logits, penalized, [sequences[i] for i in penalized])
        for i in adjusted:
            if _has_mask(sequences[i]):
                _mask(logits[i], sequences[i])

    def _bias(self, row: Tensor, sequence: Sequence) -> None:
        """Apply logit_bias, min_tokens and bad_words to one row [V]."""
        params = sequence.request.sampling
        if params.logit_bias:
            if sequence.bias is None:
                biases = params.logit_bias
                ids = np.fromiter(biases.keys(), np.int64)
                sequence.bias = ids, np.fromiter(biases.values(), np.float32)
            places, added = (torch.from_numpy(x).to(row.device) for x in sequence.bias)
            row.index_add_(0, places, added)
        if len(sequence.output_token_ids) < params.min_tokens:
            stops = set(params.stop_token_ids)
            if not params.ignore_eos:
                stops.update(self._eos_token_ids)
            row[sorted(stops)] = _MASKED
        if params.bad_words:
            ends = _ends_of_bad_words(params, sequence.output_token_ids)
            if ends:
                row[ends] = _MASKED


def _mask(row: Tensor, sequence: Sequence) -> None:
    """Leave only what allowed_token_ids and a grammar let in one row [V]."""
    allowed = sequence.request.sampling.allowed_token_ids
    if allowed is not None:
        if sequence.allowed is None:
            sequence.allowed = TokenMask.of(allowed, len(row))
        # Below what is masked: when every allowed token is masked, it is still one of them.
        _leave_allowed(row, sequence.allowed)
    if isinstance(sequence.matcher, GrammarState):
        assert sequence.matcher.allowed is not None, "the masks of the step are not filled"
        _leave_allowed(row, sequence.matcher.allowed)


def _leave_allowed(row: Tensor, mask: TokenMask) -> None:
    """Make the logits [V] of all other tokens -infinity, in place."""
    if sampling.can_read(row):
        sampling.mask(row, mask.address)
        return
    forbidden = torch.from_numpy(~mask.unpack(len(row)))
    row.masked_fill_(forbidden.to(row.device), -torch.inf)


def argmax(logits: Tensor, rows: Seq[int] | None = None) -> list[int]:
    """The place of the largest value in each of these rows, or in all; the first among equals."""
    if sampling.can_read(logits):
        return sampling.scan_rows(logits, range(len(logits)) if rows is None else rows)[1]
    if rows is not None:
        logits = logits[list(rows)]
    # On a CPU numpy's is vectorised, and torch's is not: a thirteenth of the time.
    best = logits.argmax(dim=-1) if logits.is_cuda else logits.numpy().argmax(axis=-1)
    ids: list[int] = best.tolist()
    return ids


def _ends_of_bad_words(params: SamplingParams, output: Seq[int]) -> list[int]:
    """The tokens that would complete a bad word."""
    # The slice is empty for a word of one token, and too short to match where the output is.
    return sorted(
        {
            word[-1]
            for word in params.bad_words
            if tuple(output[len(output) - len(word) + 1 :]) == word[:-1]
        }
    )


def _is_adjusted(sequence: Sequence) -> bool:
    """Whether anything changes this sequence's logits."""
    params = sequence.request.sampling
    return _has_bias(params) or _has_penalties(params) or _has_mask(sequence)


def _has_bias(params: SamplingParams) -> bool:
    return bool(params.logit_bias or params.bad_words or params.min_tokens)


def _has_mask(sequence: Sequence) -> bool:
    return sequence.matcher is not None or bool(sequence.request.sampling.allowed_token_ids)


def _has_penalties(params: SamplingParams) -> bool:
    return (
        params.repetition_penalty != 1.0
        or params.frequency_penalty != 0.0
        or params.presence_penalty != 0.0
    )


def _penalize(logits: Tensor, rows: Seq[int], sequences: Seq[Sequence]) -> None:
    """Apply the penalties to these rows of logits [n, V], in one pass over the tokens seen."""
    histories = [_history(sequence) for sequence in sequences]
    lengths = [len(history.ids) for history in histories]
    params = [sequence.request.sampling for sequence in sequences]

    def spread(values: Seq[float], kind: npt.DTypeLike = np.float32) -> Tensor:
        return torch.from_numpy(np.repeat(np.asarray(values, dtype=kind), lengths)).to(device)

    device, vocab_size = logits.device, logits.shape[1]
    starts = spread([row * vocab_size for row in rows], np.int64)
    places = starts + torch.from_numpy(np.concatenate([h.ids for h in histories])).to(device)
    counts = torch.from_numpy(np.concatenate([h.output_counts for h in histories])).to(device)
    repetition = spread([p.repetition_penalty for p in params])
    frequency = spread([p.frequency_penalty for p in params])
    presence = spread([p.presence_penalty for p in params])
    values = logits.view(-1)[places]
    values = torch.where(values > 0, values / repetition, values * repetition)
    values -= frequency * counts + presence * (counts > 0)
    logits.view(-1)[places] = values.clamp_(min=_MASKED)


def _history(sequence: Sequence) -> TokenHistory:
    if sequence.history is None:
        sequence.history = TokenHistory(
            sequence.request.prompt_token_ids, sequence.output_token_ids
        )
    return sequence.history
