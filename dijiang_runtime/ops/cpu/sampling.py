"""Rows of logits to tokens and logprobs, in the compiled kernels.

n rows    V vocabulary
"""

import ctypes
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dijiang_runtime.ops.cpu.library import (
    DrawStruct,
    LogprobStruct,
    PenaltiesStruct,
    context,
    is_available,
)


class DrawParams(Protocol):
    """How a row is drawn from; the engine's sampling parameters are such."""

    @property
    def temperature(self) -> float: ...
    @property
    def min_p(self) -> float: ...
    @property
    def top_p(self) -> float: ...
    @property
    def top_k(self) -> int: ...


class PenaltyParams(Protocol):
    """Penalties of tokens that were seen; the engine's sampling parameters have them."""

    @property
    def repetition_penalty(self) -> float: ...
    @property
    def frequency_penalty(self) -> float: ...
    @property
    def presence_penalty(self) -> float: ...


def can_read(logits: Tensor) -> bool:
    """Whether the kernels are there and these logits [n, V] are theirs to work on."""
    return logits.dtype == torch.float32 and logits.device.type == "cpu" and is_available()


def draw(
    logits: Tensor,
    rows: Sequence[int],
    params: Sequence[DrawParams],
    uniforms: Sequence[float],
) -> list[int]:
    """Draw one token from each of these rows of logits [n, V], at temperatures above 0.

    Args:
        uniforms: One number in [0, 1) for each of them.
    """
    logits = logits.contiguous()
    draws = (DrawStruct * len(rows))(
        *(
            DrawStruct(p.temperature, p.min_p, p.top_p, uniform, p.top_k, row)
            for row, p, uniform in zip(rows, params, uniforms, strict=True)
        )
    )
    tokens = (ctypes.c_int64 * len(rows))()
    here = context()
    here.kernels.dijiang_draw(
        here.handle, logits.data_ptr(), logits.shape[1], draws, len(rows), tokens
    )
    return list(tokens)


def logprobs(
    logits: Tensor, rows: Sequence[int], token_ids: Sequence[int], num_top: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The logprob of one token in each of these rows of logits [n, V], and of the likeliest there.

    Returns:
        Of each row's token, shape [rows]; ids and logprobs of the `num_top` likeliest, shape
        [rows, num_top], the likeliest first; of equals the first id.
    """
    logits = logits.contiguous()
    num_rows, vocab_size = len(rows), logits.shape[1]
    tokens, places = torch.tensor(token_ids), torch.tensor(rows)
    chosen, top = torch.empty(num_rows), torch.empty(num_rows, num_top)
    top_ids = torch.empty(num_rows, num_top, dtype=torch.int64)
    query = LogprobStruct(
        logits=logits.data_ptr(),
        rows=places.data_ptr(),
        tokens=tokens.data_ptr(),
        num_rows=num_rows,
        vocab_size=vocab_size,
        num_top=num_top,
        chosen=chosen.data_ptr(),
        top_ids=top_ids.data_ptr(),
        top=top.data_ptr(),
    )
    here = context()
    here.kernels.dijiang_logprobs(here.handle, ctypes.byref(query))
    return chosen, top_ids, top


def scan_rows(x: Tensor) -> tuple[list[bool], list[int]]:
    """In one pass over x [n, V]: which rows hold finite values alone, and where each has its
    largest, the first among equals."""
    x = x.contiguous()
    finite, likeliest = (ctypes.c_bool * len(x))(), (ctypes.c_int64 * len(x))()
    here = context()
    here.kernels.dijiang_scan_rows(here.handle, x.data_ptr(), *x.shape, finite, likeliest)
    return finite[:], likeliest[:]


def penalise(
    row: Tensor,
    tokens: npt.NDArray[np.int64],
    counts: npt.NDArray[np.float32],
    params: PenaltyParams,
    *,
    least: float,
) -> None:
    """Apply the penalties to logits [V], in place.

    Args:
        tokens: Those seen, each once. Contiguous.
        counts: How often each was put out. Contiguous.
        least: No logit becomes smaller.
    """
    penalties = PenaltiesStruct(
        tokens=tokens.ctypes.data,
        counts=counts.ctypes.data,
        num_tokens=len(tokens),
        repetition=params.repetition_penalty,
        frequency=params.frequency_penalty,
        presence=params.presence_penalty,
        least=least,
    )
    here = context()
    here.kernels.dijiang_penalise(here.handle, row.data_ptr(), ctypes.byref(penalties))


def mask(row: Tensor, allowed: npt.NDArray[np.int32]) -> None:
    """Make the logits [V] of all tokens whose bit is not set -infinity, in place.

    Args:
        allowed: One bit for each token, from the lowest of the first number on. Contiguous.
    """
    here = context()
    here.kernels.dijiang_mask(here.handle, row.data_ptr(), len(row), allowed.ctypes.data)
