"""Which tokens may come next, and what that does to a row of logits.

V vocabulary
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dijiang_runtime.engine.sequence import TokenBits
from dijiang_runtime.ops.cpu import sampling


def pack_bits(allowed: npt.NDArray[np.bool_]) -> TokenBits:
    """The bits of a mask of shape [V]."""
    padded = np.zeros(-(-len(allowed) // 32) * 32, dtype=np.bool_)
    padded[: len(allowed)] = allowed
    return np.packbits(padded, bitorder="little").view(np.int32)


def leave_allowed(row: Tensor, allowed: TokenBits) -> None:
    """Make the logits [V] of all other tokens -infinity, in place."""
    if sampling.can_read(row):
        sampling.mask(row, allowed)
        return
    bits = np.unpackbits(allowed.view(np.uint8), count=len(row), bitorder="little")
    row.masked_fill_(torch.from_numpy(bits == 0).to(row.device), -torch.inf)
