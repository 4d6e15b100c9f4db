"""Logits and each row's sampling parameters to token ids.

The order is that of vLLM: raw logprobs; logit bias and the mask of min_tokens; penalties; greedy,
or temperature, min_p, top_k, top_p and a draw. The draw inverts the cumulative distribution in
order of token id, in float64, at one counted random number, so a row's token is a function of its
own logits, parameters, seed and position.

n rows    V vocabulary
"""

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch
from torch import Tensor

from dijiang_runtime.engine.logprobs import raw_logprobs
from dijiang_runtime.engine.rng import uniform
from dijiang_runtime.engine.sequence import RawLogprobs, Sequence, TokenHistory
from dijiang_runtime.request import NO_LOGPROBS, SamplingParams

# Below every logit, yet finite: a row of nothing else still has a distribution.
_MASKED = torch.finfo(torch.float32).min

_FIRST_PREFIX = 256
"""Most likely tokens among which the cut of top_k and top_p is looked for first."""


@dataclass(frozen=True, slots=True)
class SampledToken:
    token_id: int
    logprobs: RawLogprobs | None


class Sampler:
    """Chooses the next token of every row. Keeps nothing between calls."""

    def __init__(self, eos_token_ids: Seq[int]) -> None:
        self._eos_token_ids = tuple(eos_token_ids)

    def sample(self, logits: Tensor, sequences: Seq[Sequence]) -> list[SampledToken]:
        """Choose one token for each row.

        Args:
            logits: Shape [n, V], float32, finite. Overwritten.
            sequences: The sequence of each row.
        """
        params = [sequence.request.sampling for sequence in sequences]
        reported = [i for i, p in enumerate(params) if p.logprobs != NO_LOGPROBS]
        raw_logits = logits[reported] if reported else None  # A copy.
        for row, sequence in zip(logits, sequences, strict=True):
            self._adjust(row, sequence)
        token_ids = logits.argmax(dim=-1).tolist()
        random = [i for i, p in enumerate(params) if not p.is_greedy]
        if random:
            uniforms = [uniform(sequences[i].seed, sequences[i].next_position) for i in random]
            drawn = draw(logits[random], [params[i] for i in random], uniforms)
            for i, token_id in zip(random, drawn, strict=True):
                token_ids[i] = token_id
        logprobs: dict[int, RawLogprobs] = {}
        if raw_logits is not None:
            chosen = [token_ids[i] for i in reported]
            num_top = [params[i].logprobs for i in reported]
            logprobs = dict(zip(reported, raw_logprobs(raw_logits, chosen, num_top), strict=True))
        return [SampledToken(token_id, logprobs.get(i)) for i, token_id in enumerate(token_ids)]

    def _adjust(self, row: Tensor, sequence: Sequence) -> None:
        """Apply everything that changes the logits of one row, in place. Shape [V]."""
        params = sequence.request.sampling
        if params.logit_bias:
            ids = torch.tensor(list(params.logit_bias), device=row.device)
            row[ids] += torch.tensor(list(params.logit_bias.values()), device=row.device)
        if len(sequence.output_token_ids) < params.min_tokens:
            stops = set(params.stop_token_ids)
            if not params.ignore_eos:
                stops.update(self._eos_token_ids)
            row[sorted(stops)] = _MASKED
        if _has_penalties(params):
            if sequence.history is None:
                sequence.history = TokenHistory(
                    row.shape[0], sequence.request.prompt_token_ids, sequence.output_token_ids
                )
            _penalize(row, params, sequence.history)


def _has_penalties(params: SamplingParams) -> bool:
    return (
        params.repetition_penalty != 1.0
        or params.frequency_penalty != 0.0
        or params.presence_penalty != 0.0
    )


def _penalize(row: Tensor, params: SamplingParams, history: TokenHistory) -> None:
    seen = torch.from_numpy(history.seen).to(row.device)
    counts = torch.from_numpy(history.output_counts).to(row.device)
    penalty = params.repetition_penalty
    row.copy_(torch.where(seen, torch.where(row > 0, row / penalty, row * penalty), row))
    row -= params.frequency_penalty * counts + params.presence_penalty * (counts > 0)
    row.clamp_(min=_MASKED)


def draw(logits: Tensor, params: Seq[SamplingParams], uniforms: Seq[float]) -> list[int]:
    """Draw one token for each row, at temperatures above 0.

    Args:
        logits: Shape [n, V], float32.
        params: Parameters of each row.
        uniforms: One number in [0, 1) for each row.
    """
    probs = probabilities(logits, params)
    cumulative = probs.cumsum(dim=-1)
    total = cumulative[:, -1:]
    point = torch.tensor(uniforms, dtype=torch.float64, device=logits.device).unsqueeze(1) * total
    # The product may round up to the total, beyond the last token that has a probability.
    point = torch.minimum(point, torch.nextafter(total, torch.zeros_like(total)))
    token_ids: list[int] = torch.searchsorted(cumulative, point, right=True).squeeze(1).tolist()
    return token_ids


def probabilities(logits: Tensor, params: Seq[SamplingParams]) -> Tensor:
    """Return what a draw is proportional to: [n, V] float64, 0 for tokens that are cut off."""
    device, vocab_size = logits.device, logits.shape[1]
    temperatures = torch.tensor([p.temperature for p in params], dtype=torch.float64, device=device)
    probs = torch.softmax(logits.double() / temperatures.unsqueeze(1), dim=-1)
    if with_min_p := [i for i, p in enumerate(params) if p.min_p > 0]:
        part = probs[with_min_p]
        least = part.amax(dim=-1, keepdim=True) * _column(params, with_min_p, "min_p", device)
        probs[with_min_p] = part.masked_fill(part < least, 0.0)
    cut = [i for i, p in enumerate(params) if p.top_p < 1 or 0 < p.top_k < vocab_size]
    num_considered = min(_FIRST_PREFIX, vocab_size)
    while cut:
        part = probs[cut]
        top_k = _column(params, cut, "top_k", device).long()
        top_k = torch.where(top_k > 0, top_k, vocab_size).clamp(max=vocab_size)
        top_p = _column(params, cut, "top_p", device)
        part, done = _cut_to_top(part, top_k, top_p, num_considered)
        probs[cut] = part
        cut = [i for i, is_done in zip(cut, done.tolist(), strict=True) if not is_done]
        num_considered = min(16 * num_considered, vocab_size)
    return probs


def _cut_to_top(
    probs: Tensor, top_k: Tensor, top_p: Tensor, num_considered: int
) -> tuple[Tensor, Tensor]:
    """Keep the top_k likeliest tokens, and of those the fewest whose mass reaches top_p.

    Only the `num_considered` likeliest are looked at; a row that needs more is returned as it is.
    The outcome does not depend on how many are looked at. Equals are kept by lowest id.

    Args:
        probs: Shape [n, V], float64.
        top_k: Shape [n, 1], int64, from 1 to V.
        top_p: Shape [n, 1], float64, above 0 and at most 1.

    Returns:
        The probabilities, 0 where cut, and whether each row is done, shape [n].
    """
    vocab_size = probs.shape[1]
    ordered = torch.topk(probs, num_considered, dim=-1).values
    mass = ordered.cumsum(dim=-1)
    last = top_k.clamp(max=num_considered) - 1
    # top_p is a share of what top_k leaves.
    total = torch.where(top_k < vocab_size, mass.gather(1, last), probs.cumsum(dim=-1)[:, -1:])
    num_kept = torch.minimum((mass < top_p * total).sum(dim=-1, keepdim=True) + 1, top_k)
    num_kept = torch.where(top_p < 1, num_kept, top_k)
    done = (num_kept <= num_considered) & ((top_k <= num_considered) | (top_k == vocab_size))

    threshold = ordered.gather(1, num_kept.clamp(max=num_considered) - 1)
    num_equal_kept = num_kept - (ordered > threshold).sum(dim=-1, keepdim=True)
    equal = probs == threshold
    equal &= equal.cumsum(dim=-1) <= num_equal_kept
    kept = (probs > threshold) | equal
    return torch.where(kept | ~done, probs, 0.0), done.squeeze(1)


def _column(params: Seq[SamplingParams], rows: Seq[int], name: str, device: torch.device) -> Tensor:
    values = [getattr(params[i], name) for i in rows]
    return torch.tensor(values, dtype=torch.float64, device=device).unsqueeze(1)
