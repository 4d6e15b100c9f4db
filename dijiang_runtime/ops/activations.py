"""Activations whose bits do not depend on the batch.

Torch's fused kernels compute most elements with vector instructions and the last few of each
thread's share with scalar ones, which round differently; so an element's bits depend on where in
the batch it stands. `exp` and `tanh` have one form for all elements, and sums, products and
quotients are exact to the last bit in any form.
"""

import math

import torch
from torch import Tensor


def silu(x: Tensor) -> Tensor:
    """x * sigmoid(x), as `torch.nn.functional.silu` up to rounding."""
    return x / (torch.exp(-x) + 1)


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU in its tanh form, as `torch.nn.functional.gelu` up to rounding."""
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)
    return 0.5 * x * (1 + torch.tanh(inner))
