"""Temperature, min_p, top_k, top_p, and the draw: one random number to one token.

The draw inverts the cumulative distribution in order of token id, summed up in float64. Every step
of it looks at one row alone and adds in a fixed order, so a row's token does not depend on the
batch. On the CPU the compiled kernels do it; what is here is for other devices, and for an
installation without them.

Probabilities are left as weights, of which the largest is 1: nothing here needs their sum to be 1,
and that saves a pass over the vocabulary. No cut sorts more than the tokens that may survive it.

n rows    V vocabulary
"""

from collections.abc import Sequence as Seq

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dijiang_runtime.ops.cpu import sampling
from dijiang_runtime.request import SamplingParams

Logits = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]

_BLOCK_ELEMENTS = 65536
"""Elements to work on at once: what one pass leaves in the cache, the next one finds there."""

_FIRST_LEAST, _LEAST_RATIO = 1 / 64, 1 / 16
"""The nucleus is looked for among the weights from here on, then among ever smaller ones."""

_SMALLEST = 1e-30


def draw(
    logits: Tensor, rows: Seq[int], params: Seq[SamplingParams], uniforms: Seq[float]
) -> list[int]:
    """Draw one token from each of some rows, at temperatures above 0.

    Args:
        logits: Shape [n, V], float32. Left as it is.
        rows: Which of them.
        params: Parameters of each of those.
        uniforms: One number in [0, 1) for each of those.
    """
    if sampling.can_read(logits):
        return sampling.draw(logits, rows, params, uniforms)
    if len(rows) < len(logits):
        logits = logits[list(rows)]
    vocab_size = logits.shape[1]
    token_ids = [0] * len(params)
    wide = []
    for i, p in enumerate(params):
        if 0 < p.top_k < vocab_size:
            token_ids[i] = _draw_from_top(logits[i].cpu().numpy(), p, uniforms[i])
        else:
            wide.append(i)
    num_rows = max(torch.get_num_threads(), _BLOCK_ELEMENTS // vocab_size)
    for start in range(0, len(wide), num_rows):
        block = wide[start : start + num_rows]
        drawn = _draw_block(logits[block], [params[i] for i in block], [uniforms[i] for i in block])
        for i, token_id in zip(block, drawn, strict=True):
            token_ids[i] = token_id
    return token_ids


def _draw_block(logits: Tensor, params: Seq[SamplingParams], uniforms: Seq[float]) -> list[int]:
    """Draw from the whole vocabulary, or from its nucleus."""
    weights = logits.double()
    weights -= weights.amax(dim=-1, keepdim=True)
    if any(p.temperature != 1 for p in params):
        weights /= _column([p.temperature for p in params], logits)
    weights.exp_()
    if any(p.min_p for p in params):
        weights.masked_fill_(weights < _column([p.min_p for p in params], logits), 0.0)
    token_ids = [0] * len(params)
    if whole := [i for i, p in enumerate(params) if p.top_p >= 1]:
        of_whole = weights if len(whole) == len(params) else weights[whole]
        drawn = _invert(of_whole, [uniforms[i] for i in whole])
        for i, token_id in zip(whole, drawn, strict=True):
            token_ids[i] = token_id
    for i, p in enumerate(params):
        if p.top_p < 1:
            row = weights[i].cpu().numpy()
            kept = _nucleus(row, p.top_p)
            token_ids[i] = _invert_kept(kept, row[kept], uniforms[i])
    return token_ids


def _draw_from_top(logits: Logits, params: SamplingParams, uniform: float) -> int:
    """Draw from the top_k likeliest tokens of one row [V], or fewer whose mass reaches top_p."""
    kept = _largest(logits, np.partition(logits, -params.top_k)[-params.top_k], params.top_k)
    values = logits[kept].astype(np.float64)
    weights = np.exp((values - values.max()) / params.temperature)
    weights[weights < params.min_p] = 0.0
    if params.top_p < 1:
        # top_p is a share of what min_p and top_k leave.
        chosen = _nucleus(weights, params.top_p)
        kept, weights = kept[chosen], weights[chosen]
    return _invert_kept(kept, weights, uniform)


def _invert(weights: Tensor, uniforms: Seq[float]) -> list[int]:
    """Where the cumulative distribution of each row [n, V] reaches its random number."""
    cumulative = weights.cumsum(dim=-1)
    total = cumulative[:, -1:]
    point = _column(uniforms, weights) * total
    # The product may round up to the total, beyond the last token that has a probability.
    point = torch.minimum(point, torch.nextafter(total, torch.zeros_like(total)))
    token_ids: list[int] = torch.searchsorted(cumulative, point, right=True).squeeze(1).tolist()
    return token_ids


def _invert_kept(kept: Ids, weights: Floats, uniform: float) -> int:
    """The same for one row, among the tokens that are left, in order of id."""
    cumulative = np.cumsum(weights)
    point = min(uniform * cumulative[-1], np.nextafter(cumulative[-1], 0.0))
    return int(kept[np.searchsorted(cumulative, point, side="right")])


def _nucleus(weights: Floats, top_p: float) -> Ids:
    """The places of the fewest largest weights whose mass reaches top_p of all of it, ascending.

    Among equals the first are kept.
    """
    share = top_p * float(weights.sum())
    least = _FIRST_LEAST
    while True:
        candidates = np.flatnonzero(weights >= least)
        largest = np.sort(weights[candidates])[::-1]
        num = int(np.searchsorted(np.cumsum(largest), share, side="left")) + 1
        # With every token there, only rounding can keep the mass from the share.
        if num <= len(largest) or len(candidates) == len(weights):
            num = min(num, len(largest))
            return candidates[_largest(weights[candidates], largest[num - 1], num)]
        least = least * _LEAST_RATIO if least > _SMALLEST else 0.0


def _largest(values: Floats | Logits, least: np.floating, num: int) -> Ids:
    """The places of the `num` largest values, ascending, given the last of them.

    Among equals the first are kept.
    """
    places = np.flatnonzero(values >= least)
    if len(places) > num:
        equals = np.flatnonzero(values[places] == least)
        places = np.delete(places, equals[num - len(places) :])
    return places


def _column(values: Seq[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device=like.device).unsqueeze(1)
