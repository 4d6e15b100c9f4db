"""What a mask does to logits, by numpy."""

from collections.abc import Sequence

import numpy as np
import torch

from dijiang_runtime.engine.masks import TokenMask


def let_in(logits: torch.Tensor, masks: Sequence[TokenMask | None]) -> torch.Tensor:
    """The logits, -infinity for the tokens that may not come. Both have one row for each."""
    rows = []
    for row, mask in zip(logits, masks, strict=True):
        if mask is not None:
            bits = np.unpackbits(mask.bits.view(np.uint8), bitorder="little")
            row = row.where(torch.tensor(bits[: len(row)] == 1), -torch.inf)
        rows.append(row)
    return torch.stack(rows)
