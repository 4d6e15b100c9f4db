"""The recurrent step alone: one pass over the states, in place, no copies."""

import ctypes

import torch
from torch import Tensor

from dijiang_runtime.ops.cpu.library import Context, StepStruct, context


def step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    states: Tensor,
    source: Tensor,
    target: Tensor,
    using: Context | None = None,
) -> Tensor:
    """Attend for one token of every row. Arguments as in `torch_ops.step`, float32 on the CPU."""
    rows, heads, key_dim = k.shape
    value_dim = v.shape[2]
    group = q.shape[1] // heads
    if not states.is_contiguous() or states.dtype != torch.float32:
        raise ValueError("states must be contiguous float32")
    # Contiguous copies must stay alive until the call returns.
    q, k, v, source, target = (x.contiguous() for x in (q, k, v, source, target))
    decay = log_decay.exp().contiguous()
    out = torch.empty(rows, heads * group, value_dim)
    arguments = StepStruct(
        q=q.data_ptr(),
        k=k.data_ptr(),
        v=v.data_ptr(),
        decay=decay.data_ptr(),
        decay_stride=heads if decay.dim() == 2 else 0,
        states=states.data_ptr(),
        source=source.data_ptr(),
        target=target.data_ptr(),
        out=out.data_ptr(),
        rows=rows,
        heads=heads,
        group=group,
        key_dim=key_dim,
        value_dim=value_dim,
    )
    chosen = using or context()
    chosen.kernels.dijiang_recurrent_step(chosen.handle, ctypes.byref(arguments))
    return out
