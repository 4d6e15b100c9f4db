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


class TokenSet(Protocol):
    """The tokens that may come in a row; the engine's masks are such."""

    @property
    def address(self) -> int:
        """Of one bit for each token, in numbers of 32, from the lowest of the first number on."""
        ...


class Panels:
    """Which tokens may come in n rows of logits, and what is known of each panel of those tokens.

    What is known spares others to read the rows. The logits of tokens that may not come stay as
    they are, and nobody looks at them.
    """

    def __init__(
        self,
        masks: Sequence[TokenSet | None],
        temperatures: Sequence[float] = (),
        largest_and_mass: Tensor | None = None,
    ) -> None:
        """
        Args:
            masks: Of each row; None where all tokens may come.
            temperatures: Of each row; 0 where its masses are not known.
            largest_and_mass: The largest logit, and the sum of e^((logit - largest) / temperature),
                of the tokens that may come. Shape [2, n, panels]. None: nothing is known.
        """
        self.masks = masks
        self.temperatures = temperatures
        self.largest_and_mass = largest_and_mass
        self.struct = PanelsStruct()
        """What the kernels are told. Valid as long as this object is alive."""
        if largest_and_mass is not None:
            self.struct.largest = largest = largest_and_mass.data_ptr()
            self.struct.mass = largest + largest_and_mass.nbytes // 2
        if any(temperatures):
            self._temperatures = (ctypes.c_float * len(temperatures))(*temperatures)
            self.struct.temperature = ctypes.addressof(self._temperatures)
        addresses = [0 if mask is None else mask.address for mask in masks]
        if any(addresses):
            self._addresses = (ctypes.c_size_t * len(addresses))(*addresses)
            self.struct.masks = ctypes.addressof(self._addresses)

    @classmethod
    def empty(
        cls, vocab_size: int, masks: Sequence[TokenSet | None], temperatures: Sequence[float]
    ) -> Self:
        """Room for rows whose masses are wanted at these temperatures; at 0 they are not."""
        panels = -(-vocab_size // PANEL_COLUMNS)
        return cls(masks, temperatures, torch.empty(2, len(masks), panels))

    def rows(self, chosen: Sequence[int]) -> "Panels":
        """A copy of some rows."""
        known = self.largest_and_mass
        return Panels(
            [self.masks[i] for i in chosen],
            [self.temperatures[i] for i in chosen] if self.temperatures else (),
            None if known is None else known[:, chosen].contiguous(),
        )


_NOTHING_KNOWN = PanelsStruct()


def _struct_of(panels: Panels | None) -> PanelsStruct:
    return _NOTHING_KNOWN if panels is None else panels.struct


class RowScan(NamedTuple):
    """What a pass over n rows of logits has found."""

    finite: list[bool]
    """Which rows hold finite values alone."""
    likeliest: list[int]
    """Where each row has its largest, the first among equals: of the tokens that may come where
    there are `panels`, of all where there are none."""
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
    biases: tuple[NDArray[np.int64], NDArray[np.float32]] | None = None
    """Tokens, each once, and what is added to each."""
    suppressed: Sequence[int] = ()
    """Tokens whose logits become `least`."""
    penalties: PenaltyParams | None = None
    seen: TokensSeen | None = None
    """What the penalties look at."""

    def write_to(self, struct: AdjustmentStruct, least: float) -> object:
        """Tell the kernels. What is returned must live until they have read it."""
        struct.row = self.row
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
        """Draw one token from each of these rows of logits [n, V], at temperatures above 0. Token 0
        where none may come.

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
    ) -> tuple[list[float], list[list[int]], list[list[float]]]:
        """The logprob of one token in each of these rows of logits [n, V], and of the likeliest,
        whether they may come or not.

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
        ends = [(i * num_top, (i + 1) * num_top) for i in range(num_rows)]
        return chosen[:], [top_ids[a:b] for a, b in ends], [top[a:b] for a, b in ends]

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

        What is known of the rows' panels is kept up to date.

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
