"""Logprobs under the model itself, before any sampling parameter.

n rows    V vocabulary
"""

from collections.abc import Sequence as Seq

import torch
from torch import Tensor

from dijiang_runtime.engine.sequence import RawLogprobs
from dijiang_runtime.ops.cpu import sampling


def raw_logprobs(
    logits: Tensor, token_ids: Seq[int], num_top: Seq[int], rows: Seq[int] | None = None
) -> list[RawLogprobs]:
    """Report the logprob of one token in each row, and of the likeliest tokens there.

    Args:
        logits: As the model gave them. Shape [n, V], float32.
        token_ids: The token of each row.
        num_top: How many of the likeliest tokens to report for each row; at most V are.
        rows: Which rows; all of them where it is None.
    """
    most = min(max(num_top), logits.shape[1])
    chosen, ids, values = (
        sampling.logprobs(logits, range(len(logits)) if rows is None else rows, token_ids, most)
        if sampling.can_read(logits)
        else _logprobs(logits if rows is None else logits[list(rows)], token_ids, most)
    )
    found = zip(token_ids, chosen, num_top, ids, values, strict=True)
    return [
        RawLogprobs(token_id, logprob, tuple(top_ids[:num]), tuple(top[:num]))
        for token_id, logprob, num, top_ids, top in found
    ]


def _logprobs(
    logits: Tensor, token_ids: Seq[int], num_top: int
) -> tuple[list[float], list[list[int]], list[list[float]]]:
    """`sampling.logprobs` in torch, on any device."""
    logprobs = torch.log_softmax(logits, dim=-1)
    chosen = logprobs.gather(1, torch.tensor(token_ids, device=logits.device).unsqueeze(1))
    # Logits that differ may have one logprob.
    _, ids = top_values(logits, num_top)
    return chosen.squeeze(1).tolist(), ids.tolist(), logprobs.gather(1, ids).tolist()


def top_values(x: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """Return the `num` largest values of each row and their places, equals in order of place.

    `torch.topk` alone leaves the order of equals open, and which of them are taken.
    """
    values, ids = torch.topk(x, num, dim=-1)
    if num == 0:
        return values, ids
    num_reaching = (x >= values[:, -1:]).sum(dim=-1)
    has_ties = (values[:, 1:] == values[:, :-1]).any(dim=-1) | (num_reaching > num)
    for row in has_ties.nonzero().flatten().tolist():
        candidates = (x[row] >= values[row, -1]).nonzero().flatten()
        order = x[row, candidates].argsort(descending=True, stable=True)[:num]
        ids[row] = candidates[order]
    return values, ids
