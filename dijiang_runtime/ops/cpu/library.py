"""The compiled kernels as Python sees them: `types.h` and `api.cpp` in ctypes."""

import ctypes
import functools
import importlib.machinery
import logging
import os
from ctypes import POINTER, c_char_p, c_double, c_float, c_int64, c_void_p
from pathlib import Path
from typing import ClassVar

import torch

logger = logging.getLogger(__name__)

_LIBRARY_NAME = "_kernels"

TARGET_VARIABLE = "DIJIANG_CPU_TARGET"
"""Names the instructions to use, in place of the best that the processor has. `torch`: none."""

NO_TARGET = "torch"

FORMATS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
"""How the kernels number the formats of a packed matrix."""

NUMBERS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""How they number those of a table that is not packed."""

PHASES = ("products", "attention", "rows")
"""What a step spends its time on, as they number it: matrix products, attention, and what is done
to each row between them."""


class _Struct(ctypes.Structure):
    # Annotated only: every subclass sets it.
    _fields_: ClassVar[list[tuple[str, type]]]


def _fields(kind: type, names: str) -> list[tuple[str, type]]:
    return [(name, kind) for name in names.split()]


class MatrixStruct(_Struct):
    _fields_ = [
        *_fields(c_void_p, "panels scale column_sum bias"),
        *_fields(c_int64, "groups columns format"),
    ]


class NormStruct(_Struct):
    _fields_ = _fields(c_void_p, "weight bias")


class LayerStruct(_Struct):
    _fields_ = [
        *_fields(NormStruct, "attention_norm mlp_norm readout_norm query_norm key_norm"),
        *_fields(MatrixStruct, "q k v gate o up mlp_gate down"),
        *_fields(c_void_p, "projection powers window_mix window_mix_query"),
    ]


class DecoderStruct(_Struct):
    _fields_ = [
        *_fields(
            c_int64,
            "num_layers hidden_size inner_size num_heads num_kv_heads head_dim num_features "
            "projection_columns projection_stride value_dim rotary_dim norm activation norm_first "
            "parallel_residual negated_half num_groups format window sinks",
        ),
        *_fields(c_double, "norm_eps group_eps query_scale score_scale"),
        *_fields(c_void_p, "rotary_frequencies embedding"),
        ("embedding_number", c_int64),
        ("final_norm", NormStruct),
        ("layers", POINTER(LayerStruct)),
    ]


class BatchStruct(_Struct):
    _fields_ = [
        *_fields(c_void_p, "x token_ids positions"),
        *_fields(c_int64, "num_rows num_decodes num_segments"),
        *_fields(c_void_p, "source target segments states"),
        ("layer_stride", c_int64),
        ("caches", c_void_p),
        ("cache_layer_stride", c_int64),
        *_fields(c_void_p, "finite pending"),
        *_fields(c_int64, "pending_layer_stride pending_head_stride"),
        *_fields(c_void_p, "pending_rows pending_counts nanoseconds"),
    ]


class StepStruct(_Struct):
    _fields_ = [
        *_fields(c_void_p, "q k v decay"),
        ("decay_stride", c_int64),
        *_fields(c_void_p, "states source target out"),
        *_fields(c_int64, "rows heads group key_dim value_dim"),
    ]


class PanelsStruct(_Struct):
    _fields_ = _fields(c_void_p, "largest mass temperature masks")


class DrawStruct(_Struct):
    _fields_ = [
        *_fields(c_double, "temperature min_p top_p uniform"),
        *_fields(c_int64, "top_k row"),
    ]


class PenaltiesStruct(_Struct):
    _fields_ = [
        *_fields(c_void_p, "tokens counts"),
        ("num_tokens", c_int64),
        *_fields(c_float, "repetition frequency presence least"),
    ]


class AdjustmentStruct(_Struct):
    _fields_ = [
        ("row", c_int64),
        *_fields(c_void_p, "biased bias"),
        ("num_biased", c_int64),
        ("suppressed", c_void_p),
        ("num_suppressed", c_int64),
        ("penalties", PenaltiesStruct),
    ]


class LogprobStruct(_Struct):
    _fields_ = [
        *_fields(c_void_p, "logits panels rows tokens"),
        *_fields(c_int64, "num_rows vocab_size num_top"),
        *_fields(c_void_p, "chosen top_ids top"),
    ]


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None where they were not built."""
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(_LIBRARY_NAME + suffix)
        if path.is_file():
            try:
                return _declare(ctypes.CDLL(str(path)))
            except AttributeError:
                logger.warning("%s was built from other sources: install again", path.name)
    return None


def is_available() -> bool:
    """Whether the compiled kernels were built and are wanted."""
    return os.environ.get(TARGET_VARIABLE) != NO_TARGET and library() is not None


def _declare(kernels: ctypes.CDLL) -> ctypes.CDLL:
    signatures: dict[str, tuple[type | None, list[type]]] = {
        "target": (c_char_p, [c_int64]),
        "team": (c_void_p, [c_int64]),
        "context": (c_void_p, [c_int64, c_void_p]),
        "free_context": (None, [c_void_p]),
        "multiply": (
            None,
            [c_void_p, POINTER(MatrixStruct), c_void_p, c_int64, c_int64, c_void_p],
        ),
        "logits": (
            None,
            [
                c_void_p,
                POINTER(MatrixStruct),
                *2 * [c_void_p],
                *2 * [c_int64],
                c_void_p,
                POINTER(PanelsStruct),
                *2 * [c_void_p],
            ],
        ),
        "forward": (None, [c_void_p, POINTER(DecoderStruct), POINTER(BatchStruct)]),
        "recurrent_step": (None, [c_void_p, POINTER(StepStruct)]),
        "draw": (
            None,
            [
                *2 * [c_void_p],
                POINTER(PanelsStruct),
                c_int64,
                POINTER(DrawStruct),
                c_int64,
                c_void_p,
            ],
        ),
        "logprobs": (None, [c_void_p, POINTER(LogprobStruct)]),
        "scan_rows": (None, [*2 * [c_void_p], c_int64, c_int64, c_void_p, c_void_p]),
        "adjust": (
            None,
            [
                *2 * [c_void_p],
                POINTER(PanelsStruct),
                c_int64,
                POINTER(AdjustmentStruct),
                c_int64,
                c_void_p,
            ],
        ),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(kernels, f"dijiang_{name}")
        function.restype, function.argtypes = result, arguments
    return kernels


def targets() -> tuple[str, ...]:
    """The kinds of instructions that this processor runs, best first. None: not built."""
    kernels = library()
    if kernels is None:
        return ()
    names: list[str] = []
    while (name := kernels.dijiang_target(len(names))) is not None:
        names.append(name.decode())
    return tuple(names)


class Context:
    """Kernels for one target, the threads that run them and the memory that they work in."""

    def __init__(self, target: str, num_threads: int) -> None:
        kernels = library()
        assert kernels is not None, "the caller asks is_available first"
        if target not in targets():
            raise ValueError(f"{target!r} does not run here; these do: {', '.join(targets())}.")
        self.kernels = kernels
        self.target = target
        self.num_threads = num_threads
        team = _team(num_threads)
        self.handle = kernels.dijiang_context(targets().index(target), team)

    def __deepcopy__(self, memo: object) -> "Context":
        return self  # Copies of a model share what computes it.

    def __del__(self) -> None:
        if hasattr(self, "handle"):
            self.kernels.dijiang_free_context(self.handle)


@functools.cache
def _team(num_threads: int) -> int:
    kernels = library()
    assert kernels is not None
    team: int = kernels.dijiang_team(num_threads)
    return team


@functools.cache
def _context(target: str | None, num_threads: int) -> Context:
    return Context(target or targets()[0], num_threads)


def context() -> Context:
    """The context for as many threads as torch uses, and for the best target or the one named by
    `TARGET_VARIABLE`."""
    return _context(os.environ.get(TARGET_VARIABLE), torch.get_num_threads())
