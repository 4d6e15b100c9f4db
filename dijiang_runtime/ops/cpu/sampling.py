"""Rows of logits to tokens and logprobs, in the compiled kernels.

n rows    V vocabulary
"""

import ctypes
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from dijiang_runtime.ops.cpu.library import Context, DrawStruct, LogprobStruct, PenaltiesStruct


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


class TokensSeen(Protocol):
    """What penalties look at, each token once; the engine's token history is such."""

    def __len__(self) -> int: ...
    @property
    def addresses(self) -> tuple[int, int]:
        """Of the ids, 64 bits each, and of how often each was put out, float32."""
        ...


class LogitKernels:
    """What the compiled kernels do to rows of logits, in the threads of a context."""

    def __init__(self, context: Context) -> None:
        self.context = context

    @staticmethod
    def can_read(logits: Tensor) -> bool:
        """Whether these logits [n, V] are the kernels' to work on."""
        return logits.dtype == torch.float32 and logits.device.type == "cpu"

    def draw(
        self,
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
        here = self.context
        here.kernels.dijiang_draw(
            here.handle, logits.data_ptr(), logits.shape[1], draws, len(rows), tokens
        )
        return tokens[:]

    def logprobs(
        self, logits: Tensor, rows: Sequence[int], token_ids: Sequence[int], num_top: int
    ) -> tuple[list[float], list[list[int]], list[list[float]]]:
        """The logprob of one token in each of these rows of logits [n, V], and of the likeliest.

        Returns:
            Of each row's token, the logprob; ids and logprobs of its `num_top` likeliest, the
            likeliest first; of equals the first id.
        """
        logits = logits.contiguous()
        num_rows, size = len(rows), len(rows) * num_top
        chosen, top = (ctypes.c_float * num_rows)(), (ctypes.c_float * size)()
        top_ids = (ctypes.c_int64 * size)()
        query = LogprobStruct(
            logits=logits.data_ptr(),
            rows=ctypes.addressof(places := _integers(rows)),
            tokens=ctypes.addressof(tokens := _integers(token_ids)),
            num_rows=num_rows,
            vocab_size=logits.shape[1],
            num_top=num_top,
            chosen=ctypes.addressof(chosen),
            top_ids=ctypes.addressof(top_ids),
            top=ctypes.addressof(top),
        )
        here = self.context
        here.kernels.dijiang_logprobs(here.handle, ctypes.byref(query))
        del places, tokens  # They had to live until now.
        ends = [(i * num_top, (i + 1) * num_top) for i in range(num_rows)]
        return chosen[:], [top_ids[a:b] for a, b in ends], [top[a:b] for a, b in ends]

    def scan_rows(
        self, x: Tensor, rows: Sequence[int] | None = None
    ) -> tuple[list[bool], list[int]]:
        """In one pass over rows of x [n, V], all where they are None: which hold finite values
        alone, and where each has its largest, the first among equals."""
        x = x.contiguous()
        num_rows = len(x) if rows is None else len(rows)
        finite, likeliest = (ctypes.c_bool * num_rows)(), (ctypes.c_int64 * num_rows)()
        here = self.context
        here.kernels.dijiang_scan_rows(
            here.handle,
            x.data_ptr(),
            None if rows is None else _integers(rows),
            num_rows,
            x.shape[1],
            finite,
            likeliest,
        )
        return finite[:], likeliest[:]

    def penalise(
        self, row: Tensor, seen: TokensSeen, params: PenaltyParams, *, least: float
    ) -> None:
        """Apply the penalties to logits [V], in place. No logit becomes smaller than `least`."""
        tokens, counts = seen.addresses
        penalties = PenaltiesStruct(
            tokens=tokens,
            counts=counts,
            num_tokens=len(seen),
            repetition=params.repetition_penalty,
            frequency=params.frequency_penalty,
            presence=params.presence_penalty,
            least=least,
        )
        here = self.context
        here.kernels.dijiang_penalise(here.handle, row.data_ptr(), ctypes.byref(penalties))

    def mask(self, row: Tensor, allowed: int) -> None:
        """Make the logits [V] of all tokens whose bit is not set -infinity, in place.

        Args:
            allowed: The address of the bits, one for each token, in numbers of 32, from the lowest
                of the first number on.
        """
        here = self.context
        here.kernels.dijiang_mask(here.handle, row.data_ptr(), len(row), allowed)


def _integers(values: Sequence[int]) -> "ctypes.Array[ctypes.c_int64]":
    return (ctypes.c_int64 * len(values))(*values)
