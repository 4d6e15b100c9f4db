"""Temperature, min_p, top_k, top_p, and the draw: one random number to one token.

The draw inverts the cumulative distribution in order of token id, in float64. Every step of it
looks at one row alone and adds in a fixed order, so a row's token does not depend on the batch.

n rows    V vocabulary
"""

from collections.abc import Sequence as Seq

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dijiang_runtime.request import SamplingParams

Floats = npt.NDArray[np.float64]

_BLOCK_ELEMENTS = 65536
"""Elements to work on at once: what one pass leaves in the cache, the next one finds there."""

_FIRST_CANDIDATES = 256
"""How many of the likeliest tokens the cut of top_p is looked for among first."""

_SMALLEST = 1e-30


def draw(logits: Tensor, params: Seq[SamplingParams], uniforms: Seq[float]) -> list[int]:
    """Draw one token for each row, at temperatures above 0.

    Args:
        logits: Shape [n, V], float32.
        params: Parameters of each row.
        uniforms: One number in [0, 1) for each row.
    """
    num_rows = max(torch.get_num_threads(), _BLOCK_ELEMENTS // logits.shape[1])
    token_ids: list[int] = []
    for start in range(0, len(logits), num_rows):
        rows = slice(start, start + num_rows)
        token_ids.extend(_draw_block(logits[rows], params[rows], uniforms[rows]))
    return token_ids


def _draw_block(logits: Tensor, params: Seq[SamplingParams], uniforms: Seq[float]) -> list[int]:
    temperatures = _column([p.temperature for p in params], logits)
    probs = torch.softmax(logits.double() / temperatures, dim=-1)
    if any(p.min_p for p in params):
        least = probs.amax(dim=-1, keepdim=True) * _column([p.min_p for p in params], logits)
        probs.masked_fill_(probs < least, 0.0)
    is_cut = [p.top_p < 1 or 0 < p.top_k < logits.shape[1] for p in params]
    token_ids = [0] * len(params)
    if whole := [i for i, cut in enumerate(is_cut) if not cut]:
        for i, token_id in zip(
            whole, _invert(probs[whole], [uniforms[i] for i in whole]), strict=True
        ):
            token_ids[i] = token_id
    for i, cut in enumerate(is_cut):
        if cut:
            token_ids[i] = _draw_from_top(probs[i].cpu().numpy(), params[i], uniforms[i])
    return token_ids


def _invert(probs: Tensor, uniforms: Seq[float]) -> list[int]:
    """Where the cumulative distribution of each row [n, V] reaches its random number."""
    cumulative = probs.cumsum(dim=-1)
    total = cumulative[:, -1:]
    point = _column(uniforms, probs) * total
    # The product may round up to the total, beyond the last token that has a probability.
    point = torch.minimum(point, torch.nextafter(total, torch.zeros_like(total)))
    token_ids: list[int] = torch.searchsorted(cumulative, point, right=True).squeeze(1).tolist()
    return token_ids


def _draw_from_top(probs: Floats, params: SamplingParams, uniform: float) -> int:
    """Draw from the top_k likeliest tokens of one row [V], or fewer whose mass reaches top_p."""
    kept = _likeliest(probs, params)
    cumulative = np.cumsum(probs[kept])
    point = min(uniform * cumulative[-1], np.nextafter(cumulative[-1], 0.0))
    return int(kept[np.searchsorted(cumulative, point, side="right")])


def _likeliest(probs: Floats, params: SamplingParams) -> npt.NDArray[np.int64]:
    """The ids that top_k and top_p keep, ascending. Among equals the lowest ids are kept."""
    vocab_size = len(probs)
    top_k = params.top_k if 0 < params.top_k < vocab_size else vocab_size
    num_first = top_k if top_k < vocab_size else min(_FIRST_CANDIDATES, vocab_size)
    least = np.partition(probs, -num_first)[-num_first]
    candidates = np.flatnonzero(probs >= least)
    num_kept = top_k
    if params.top_p < 1:
        # top_p is a share of what min_p and top_k leave.
        total = None if top_k < vocab_size else np.cumsum(probs)[-1]
        while (found := _num_to_reach(probs[candidates], top_k, params.top_p, total)) is None:
            least = least / 4 if least > _SMALLEST else 0.0
            candidates = np.flatnonzero(probs >= least)
        num_kept = found
    values = probs[candidates]
    threshold = np.partition(values, -num_kept)[-num_kept]
    is_kept = values > threshold
    # The ids ascend, so these are the lowest of the equals.
    equals = np.flatnonzero(values == threshold)
    is_kept[equals[: num_kept - np.count_nonzero(is_kept)]] = True
    kept: npt.NDArray[np.int64] = candidates[is_kept]
    return kept


def _num_to_reach(values: Floats, top_k: int, top_p: float, total: float | None) -> int | None:
    """How many of the largest of `values` reach a share of `total`; None if all of them do not.

    Without a total, it is the mass of the `top_k` largest.
    """
    if total is not None and len(values) < top_k and values.sum() < 0.999 * top_p * total:
        return None  # Not worth sorting.
    mass = np.cumsum(np.sort(values)[::-1][:top_k])
    share = top_p * (mass[-1] if total is None else total)
    num = int(np.searchsorted(mass, share, side="left")) + 1
    if num <= len(mass):
        return num
    # With every token there, only rounding can keep the mass from the share.
    return len(mass) if len(mass) == top_k else None


def _column(values: Seq[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device=like.device).unsqueeze(1)
