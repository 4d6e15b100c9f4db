"""Rows of logits to tokens and logprobs, in the compiled kernels.

n rows    V vocabulary
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dijiang_runtime.ops.cpu.library import (
    AdjustmentStruct,
    Context,
    DrawStruct,
    LogprobStruct,
    PanelsStruct,
)
from dijiang_runtime.ops.cpu.packed import PANEL_COLUMNS


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


class Panels:
    """What is known of each panel of n rows of logits. It spares others to read the rows."""

    def __init__(self, largest_and_mass: Tensor, temperatures: Sequence[float]) -> None:
        """
        Args:
            largest_and_mass: The largest logit, and the sum of e^((logit - largest) / temperature).
                Shape [2, n, panels].
            temperatures: Of each row; 0 where its masses are not known.
        """
        self.largest_and_mass = largest_and_mass
        self.temperatures = temperatures
        largest = largest_and_mass.data_ptr()
        self.struct = PanelsStruct(largest, largest + largest_and_mass.nbytes // 2)
        """What the kernels are told. Valid as long as this object is alive."""
        if any(temperatures):
            self._temperatures = (ctypes.c_float * len(temperatures))(*temperatures)
            self.struct.temperature = ctypes.addressof(self._temperatures)

    @classmethod
    def empty(cls, vocab_size: int, temperatures: Sequence[float]) -> Self:
        """Room for rows whose masses are wanted at these temperatures; at 0 they are not."""
        panels = -(-vocab_size // PANEL_COLUMNS)
        return cls(torch.empty(2, len(temperatures), panels), temperatures)

    @property
    def largest(self) -> Tensor:
        return self.largest_and_mass[0]

    @property
    def mass(self) -> Tensor:
        return self.largest_and_mass[1]

    def rows(self, chosen: Sequence[int]) -> "Panels":
        """A copy of some rows."""
        temperatures = [self.temperatures[i] for i in chosen]
        return Panels(self.largest_and_mass[:, chosen], temperatures)


_NOTHING_KNOWN = PanelsStruct()


def _struct_of(panels: Panels | None) -> PanelsStruct:
    return _NOTHING_KNOWN if panels is None else panels.struct


class RowScan(NamedTuple):
    """What a pass over n rows of logits has found."""

    finite: list[bool]
    """Which rows hold finite values alone."""
    likeliest: list[int]
    """Where each row has its largest, the first among equals."""
    panels: Panels | None
    """What was found out about their panels, if anything."""

    def of_finite(self) -> "RowScan":
        """Of those rows alone that are finite."""
        likeliest = [best for best, ok in zip(self.likeliest, self.finite, strict=True) if ok]
        kept = [i for i, ok in enumerate(self.finite) if ok]
        panels = None if self.panels is None else self.panels.rows(kept)
        return RowScan([True] * len(likeliest), likeliest, panels)


@dataclass(slots=True)
class Adjustment:
    """What changes a row of logits, in this order."""

    row: int
    is_drawn: bool = True
    """Whether the row is drawn from. Else its likeliest token alone is wanted, and masks are not
    written."""
    biases: tuple[NDArray[np.int64], NDArray[np.float32]] | None = None
    """Tokens, each once, and what is added to each."""
    suppressed: Sequence[int] = ()
    """Tokens whose logits become `least`."""
    penalties: PenaltyParams | None = None
    seen: TokensSeen | None = None
    """What the penalties look at."""
    masks: Sequence[int] = ()
    """Addresses of up to two sets of tokens that may come, one bit for each, in numbers of 32, from
    the lowest of the first number on. All others become -infinity."""

    def write_to(self, struct: AdjustmentStruct, least: float) -> object:
        """Tell the kernels. What is returned must live until they have read it."""
        struct.row, struct.is_drawn = self.row, self.is_drawn
        if self.biases is not None:
            ids, added = self.biases
            struct.biased, struct.bias = ids.ctypes.data, added.ctypes.data
            struct.num_biased = len(ids)
        kept = None
        if self.suppressed:
            kept = _integers(self.suppressed)
            struct.suppressed, struct.num_suppressed = ctypes.addressof(kept), len(kept)
            struct.penalties.least = least
        if self.penalties is not None and self.seen is not None:
            penalties, params = struct.penalties, self.penalties
            penalties.least = least
            penalties.tokens, penalties.counts = self.seen.addresses
            penalties.num_tokens = len(self.seen)
            penalties.repetition = params.repetition_penalty
            penalties.frequency = params.frequency_penalty
            penalties.presence = params.presence_penalty
        for i, mask in enumerate(self.masks):
            struct.masks[i] = mask
        return kept


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
        panels: Panels | None = None,
    ) -> list[int]:
        """Draw one token from each of these rows of logits [n, V], at temperatures above 0.

        Args:
            uniforms: One number in [0, 1) for each of them.
            panels: Of all rows of the logits, where they are known.
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
            here.handle,
            logits.data_ptr(),
            ctypes.byref(_struct_of(panels)),
            logits.shape[1],
            draws,
            len(rows),
            tokens,
        )
        return tokens[:]

    def logprobs(
        self,
        logits: Tensor,
        rows: Sequence[int],
        token_ids: Sequence[int],
        num_top: int,
        panels: Panels | None = None,
    ) -> tuple[list[float], list[tuple[int, ...]], list[tuple[float, ...]]]:
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
            panels=ctypes.addressof(_struct_of(panels)),
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
        ids, values, starts = top_ids[:], top[:], range(0, size, num_top or 1)
        return (
            chosen[:],
            [tuple(ids[i : i + num_top]) for i in starts] or [()] * num_rows,
            [tuple(values[i : i + num_top]) for i in starts] or [()] * num_rows,
        )

    def scan_rows(self, x: Tensor) -> RowScan:
        """Find out which rows of x [n, V] are finite, and where each has its largest."""
        x = x.contiguous()
        num_rows = len(x)
        finite, likeliest = (ctypes.c_bool * num_rows)(), (ctypes.c_int64 * num_rows)()
        here = self.context
        here.kernels.dijiang_scan_rows(
            here.handle, x.data_ptr(), num_rows, x.shape[1], finite, likeliest
        )
        return RowScan(finite[:], likeliest[:], None)

    def adjust(
        self,
        logits: Tensor,
        adjustments: Sequence[Adjustment],
        panels: Panels | None = None,
        *,
        least: float,
    ) -> list[int]:
        """Change rows of logits [n, V] in place, and return the likeliest token of each of them.

        A row that nobody draws from is changed no more than that takes. What is known of the rows'
        panels is kept up to date, and says alone where a whole panel has become -infinity: the
        logits there are left as they are.

        Args:
            least: No logit becomes smaller by a penalty.
        """
        assert logits.is_contiguous()
        structs = (AdjustmentStruct * len(adjustments))()
        kept = [
            adjustment.write_to(struct, least)
            for adjustment, struct in zip(adjustments, structs, strict=True)
        ]
        likeliest = (ctypes.c_int64 * len(adjustments))()
        here = self.context
        here.kernels.dijiang_adjust(
            here.handle,
            logits.data_ptr(),
            ctypes.byref(_struct_of(panels)),
            logits.shape[1],
            structs,
            len(adjustments),
            likeliest,
        )
        del kept
        return likeliest[:]


def _integers(values: Sequence[int]) -> "ctypes.Array[ctypes.c_int64]":
    return (ctypes.c_int64 * len(values))(*values)
