"""The recurrent step compiled for the CPU: one pass over the states, in place, no copies.

Built with the package where there is a C++ compiler, for the widest vectors that the processor has.
Without it everything works with `torch_ops`, slower.
"""

import ctypes
import functools
import importlib.machinery
from pathlib import Path

import torch
from torch import Tensor

_LIBRARY_NAME = "_kernels"


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None where they were not built."""
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(_LIBRARY_NAME + suffix)
        if path.is_file():
            kernels = ctypes.CDLL(str(path))
            pointer, size = ctypes.c_void_p, ctypes.c_int64
            kernels.dijiang_recurrent_step.argtypes = [
                *(pointer, pointer, pointer, pointer, size),
                *(pointer, pointer, pointer, pointer, size),
                *(size, size, size, size),
            ]
            kernels.dijiang_recurrent_step.restype = None
            return kernels
    return None


def is_available() -> bool:
    """Whether the compiled kernels were built."""
    return library() is not None


def step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    states: Tensor,
    source: Tensor,
    target: Tensor,
) -> Tensor:
    """Attend for one token of every row. Arguments as in `torch_ops.step`, float32 on the CPU."""
    kernels = library()
    assert kernels is not None, "the caller asks is_available first"
    rows, heads, key_dim = k.shape
    value_dim = v.shape[2]
    group = q.shape[1] // heads
    if not states.is_contiguous() or states.dtype != torch.float32:
        raise ValueError("states must be contiguous float32")
    # Contiguous copies must stay alive until the call returns.
    q, k, v, source, target = (x.contiguous() for x in (q, k, v, source, target))
    decay = log_decay.exp().contiguous()
    out = torch.empty(rows, heads * group, value_dim)
    kernels.dijiang_recurrent_step(
        q.data_ptr(),
        k.data_ptr(),
        v.data_ptr(),
        decay.data_ptr(),
        heads if decay.dim() == 2 else 0,
        states.data_ptr(),
        source.data_ptr(),
        target.data_ptr(),
        out.data_ptr(),
        rows,
        heads,
        group,
        key_dim,
        value_dim,
    )
    return out
