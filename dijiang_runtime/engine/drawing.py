"""Temperature, min_p, top_k, top_p, and the draw: one random number to one token.

The draw inverts the cumulative distribution in order of token id. On the CPU the compiled kernels
do it; what is here is for other devices, and for an installation without them. It waits for nothing
that a device computes.

Probabilities are integers here, whose sums do not depend on the batch (`exact.py`), so that a row's
token depends on that row alone.

n rows    V vocabulary
"""

from collections.abc import Sequence as Seq

import numpy as np
import torch
from torch import Tensor

from dijiang_runtime.engine.exact import blocks, largest_weight
from dijiang_runtime.engine.ranking import rank
from dijiang_runtime.engine.transfers import take_rows, to_device
from dijiang_runtime.request import SamplingParams


def draw_in_torch(logits: Tensor, params: Seq[SamplingParams], uniforms: Seq[float]) -> Tensor:
    """Draw one token from each row of logits [n, V]. Shape [n], int64, on their device.

    A row that holds NaN gets some token.
    """
    drawn = [_draw_block(logits[b], params[b], uniforms[b]) for b in blocks(logits)]
    return torch.cat(drawn)


def _draw_block(logits: Tensor, params: Seq[SamplingParams], uniforms: Seq[float]) -> Tensor:
    numbers = [(p.temperature, p.min_p, u) for p, u in zip(params, uniforms, strict=True)]
    columns = to_device(np.asarray(numbers, dtype=np.float64).T, logits.device)
    temperature, min_p, uniform = columns.unsqueeze(-1)
    shares = logits.double()
    shares -= shares.amax(dim=-1, keepdim=True)
    shares /= temperature
    shares.exp_()
    shares.masked_fill_(shares < min_p, 0.0)
    weights = shares.mul_(largest_weight(logits.shape[1])).long()
    for cut in _cuts(params, logits.shape[1]):
        kept = _cut(take_rows(weights, cut), take_rows(logits, cut), [params[i] for i in cut])
        if len(cut) == len(params):
            weights = kept
        else:
            places = to_device(np.asarray(cut, dtype=np.int64), logits.device)
            weights.index_copy_(0, places, kept)
    cumulative = weights.cumsum(dim=-1)
    total = cumulative[:, -1:]
    # The product may round up to the total, beyond the last token that has a weight.
    point = torch.minimum((uniform * total).long(), total - 1)
    found = torch.searchsorted(cumulative, point, right=True)
    return found.squeeze(1).clamp_(max=logits.shape[1] - 1)


def _cuts(params: Seq[SamplingParams], vocab_size: int) -> list[list[int]]:
    """The rows that top_k cuts and those that top_p alone does, which have more to rank."""
    by_count = [i for i, p in enumerate(params) if 0 < p.top_k < vocab_size]
    by_mass = [i for i, p in enumerate(params) if p.top_p < 1 and not 0 < p.top_k < vocab_size]
    return [cut for cut in (by_count, by_mass) if cut]


def _cut(weights: Tensor, logits: Tensor, params: Seq[SamplingParams]) -> Tensor:
    """The weights [n, V] with 0 where top_k or top_p leaves a token out. Of equals the first stay.

    top_p is a share of what min_p and top_k leave.
    """
    vocab_size = logits.shape[1]
    most = [p.top_k if 0 < p.top_k < vocab_size else vocab_size for p in params]
    columns = np.asarray([most, [p.top_p for p in params]], dtype=np.float64)
    top_k, top_p = to_device(columns, logits.device).unsqueeze(-1)
    order = rank(logits, max(most))
    kept = weights.gather(1, order)
    kept.masked_fill_(torch.arange(max(most), device=logits.device) >= top_k, 0)
    through = kept.cumsum(dim=-1)
    needed = (top_p * through[:, -1:]).ceil().long()
    kept.masked_fill_(through - kept >= needed, 0)
    return torch.zeros_like(weights).scatter_(1, order, kept)
