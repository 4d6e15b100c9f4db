"""Logprobs under the model itself, before any sampling parameter.

n rows    D hidden    V vocabulary
"""

from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import NamedTuple

import numpy as np
from torch import Tensor

from dijiang_runtime.engine.exact import log_sum_exp
from dijiang_runtime.engine.ranking import rank
from dijiang_runtime.engine.sequence import RawLogprobs, Sequence
from dijiang_runtime.engine.transfers import to_device, to_host
from dijiang_runtime.ops.cpu.sampling import LogitKernels, Panels
from dijiang_runtime.ops.linear import CHUNK_TILE


class LogprobTensors(NamedTuple):
    """Logprobs of n rows, where the logits are."""

    chosen: Tensor
    """Of each row's token. [n], float32."""
    top_ids: Tensor
    """The likeliest tokens, the likeliest first. [n, num], int64."""
    top: Tensor
    """Their logprobs. [n, num], float32."""


def raw_logprobs(
    logits: Tensor,
    token_ids: Seq[int],
    num_top: Seq[int],
    rows: Seq[int] | None = None,
    *,
    kernels: LogitKernels | None,
    panels: Panels | None = None,
) -> list[RawLogprobs]:
    """Report the logprob of one token in each row, and of the likeliest tokens there.

    Args:
        logits: As the model gave them. Shape [n, V], float32.
        token_ids: The token of each row.
        num_top: How many of the likeliest tokens to report for each row; at most V are.
        rows: Which rows; all of them where it is None.
        kernels: Those for logits on the CPU. None: torch does it.
        panels: What is known of those of the logits, if anything.
    """
    if kernels is None or not kernels.can_read(logits):
        logits = logits if rows is None else logits[list(rows)]
        ids = to_device(np.asarray(token_ids, dtype=np.int64), logits.device)
        found = to_host(*logprob_tensors(logits, ids, max(num_top)))
        return as_reported(token_ids, num_top, LogprobTensors(*found))
    most = min(max(num_top), logits.shape[1])
    places = range(len(logits)) if rows is None else rows
    found_here = kernels.logprobs(logits, places, token_ids, most, panels)
    return _as_reported(token_ids, num_top, *found_here)


def logprob_tensors(logits: Tensor, token_ids: Tensor, num_top: int) -> LogprobTensors:
    """The same in torch, on any device. token_ids [n], int64, lie on it as well."""
    totals = log_sum_exp(logits)
    # Logits that differ may have one logprob, so it is they that are ranked.
    ids = rank(logits, min(num_top, logits.shape[1]))
    chosen = logits.gather(1, token_ids.unsqueeze(1)) - totals
    return LogprobTensors(chosen.squeeze(1).float(), ids, (logits.gather(1, ids) - totals).float())


def as_reported(token_ids: Seq[int], num_top: Seq[int], found: LogprobTensors) -> list[RawLogprobs]:
    """What lies on the host by now, as many of the likeliest tokens as each row asked for."""
    return _as_reported(token_ids, num_top, *(x.tolist() for x in found))


def chunk_logprobs(
    sequence: Sequence,
    hidden: Tensor,
    logits_of: Callable[[Tensor], Tensor],
    kernels: LogitKernels | None,
) -> list[RawLogprobs]:
    """What a prompt chunk says of the prompt tokens after its own, one tile at a time.

    Args:
        sequence: Whose chunk is the next that is not committed.
        hidden: The chunk's final hidden states. Shape [n, D].
        logits_of: Gives the logits of a whole tile, or of the ragged end of a prompt.
        kernels: As for `raw_logprobs`.
    """
    request, start = sequence.request, sequence.num_computed_tokens
    # The last row of the prompt predicts the first output token.
    num_rows = min(len(hidden), len(request.prompt_token_ids) - 1 - start)
    logprobs: list[RawLogprobs] = []
    for first in range(0, num_rows, CHUNK_TILE):
        tile = hidden[first : min(first + CHUNK_TILE, len(hidden))]
        num_used = min(len(tile), num_rows - first)
        next_ids = request.prompt_token_ids[start + first + 1 :][:num_used]
        num_top = [request.sampling.prompt_logprobs] * num_used
        logits = logits_of(tile)[:num_used]
        logprobs.extend(raw_logprobs(logits, next_ids, num_top, kernels=kernels))
    return logprobs


def _as_reported(
    token_ids: Seq[int],
    num_top: Seq[int],
    chosen: Seq[float],
    ids: Seq[Seq[int]],
    values: Seq[Seq[float]],
) -> list[RawLogprobs]:
    rows = zip(token_ids, chosen, num_top, ids, values, strict=True)
    return [
        RawLogprobs(token_id, logprob, tuple(top_ids[:num]), tuple(top[:num]))
        for token_id, logprob, num, top_ids, top in rows
    ]
