"""The embedding of a text: the mean of its tokens' last hidden states, brought to length 1.

The models were not trained for embeddings. The mean says what a text is about better than the last
state alone does, and every token counts, however long the text.
"""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dijiang_runtime.config import CHUNK_SIZE

if TYPE_CHECKING:
    from torch import Tensor

Pooled = npt.NDArray[np.float64]


def pool_hidden(hidden: "Tensor", so_far: Pooled | None) -> Pooled:
    """Add the hidden states of a part of a prompt to the sum of the parts before.

    The sum goes chunk by chunk, and prompts are cut between chunks, so its bits do not depend on
    how the prompt was split.

    Args:
        hidden: [n, D], after the last norm.
        so_far: [D], or None at the beginning.
    """
    total = np.zeros(hidden.shape[1]) if so_far is None else so_far
    for start in range(0, len(hidden), CHUNK_SIZE):
        total = total + hidden[start : start + CHUNK_SIZE].double().cpu().sum(dim=0).numpy()
    return total


def embedding_bytes(pooled: Pooled) -> bytes:
    """The direction of a sum of hidden states as little-endian float32. [D]"""
    # A sum of zeros has no direction; it stays what it is.
    length = float(np.sqrt(np.square(pooled).sum())) or 1.0
    return (pooled / length).astype("<f4").tobytes()
