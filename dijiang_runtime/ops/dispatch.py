"""Which backend serves a device."""

import torch
from torch import Tensor

from dijiang_runtime.ops import cpu, torch_ops


def step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    states: Tensor,
    source: Tensor,
    target: Tensor,
) -> Tensor:
    """`torch_ops.step` by the fastest backend for these tensors.

    The choice depends on device and dtype alone, never on the batch.
    """
    if states.device.type == "cuda" and states.dtype == torch.float32:
        from dijiang_runtime.ops import triton  # Imports Triton.

        return triton.step(q, k, v, log_decay, states, source, target)
    compiled = states.device.type == "cpu" and states.dtype == torch.float32 and cpu.is_available()
    chosen = cpu.step if compiled else torch_ops.step
    return chosen(q, k, v, log_decay, states, source, target)
