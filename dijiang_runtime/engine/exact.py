"""Sums of probabilities in integers, which are the same in any order.

A device shares a sum of floats out by the shape of the batch, and even by where in memory a row
begins. So probabilities are made weights here: integers of which a row's largest is some power of
two. What is lost is at most 2^-36 of the largest probability.

n rows    V vocabulary
"""

from collections.abc import Iterator

import torch
from torch import Tensor

_CPU_BLOCK, _DEVICE_BLOCK = 2**16, 2**23
"""Elements to work on at once: what one pass leaves in a CPU's cache, the next one finds there; on
a GPU it bounds the memory."""


def blocks(logits: Tensor) -> Iterator[slice]:
    """The rows of logits [n, V], some at a time."""
    elements = _CPU_BLOCK if logits.device.type == "cpu" else _DEVICE_BLOCK
    num_rows = max(1, elements // logits.shape[1])
    for start in range(0, len(logits), num_rows):
        yield slice(start, start + num_rows)


def largest_weight(vocab_size: int) -> float:
    """A power of two: so many of it have a sum in 63 bits, and float64 holds it to the unit."""
    return 2.0 ** min(52, 62 - vocab_size.bit_length())


def log_sum_exp(logits: Tensor) -> Tensor:
    """The logarithm of the sum of each row's exponentials. Shape [n, 1], float64."""
    return torch.cat([_log_sum_exp(logits[block]) for block in blocks(logits)])


def _log_sum_exp(logits: Tensor) -> Tensor:
    shares = logits.double()
    largest = shares.amax(dim=-1, keepdim=True)
    shares -= largest
    weights = shares.exp_().mul_(largest_weight(logits.shape[1])).long()
    total = weights.sum(dim=-1, keepdim=True).double()
    return (total / largest_weight(logits.shape[1])).log() + largest
