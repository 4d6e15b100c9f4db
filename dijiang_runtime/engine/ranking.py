"""The likeliest tokens of a row, in an order that leaves nothing open.

n rows    V vocabulary
"""

import numpy as np
import torch
from torch import Tensor

_ID_BITS = 32
_LOW_BITS = (1 << _ID_BITS) - 1


def rank(logits: Tensor, num: int) -> Tensor:
    """The places of the `num` largest values of each row, the largest first; of equals the first.

    `torch.topk` and `torch.sort` leave the order of equals open. So what they get are integers, no
    two of them equal: the order of the value, and below it that of the place.

    Args:
        logits: Shape [n, V], float32.
    """
    # Adding 0 makes one zero of two. Read as integers, floats of one sign are in order.
    bits = (logits + 0.0).view(torch.int32)
    values = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()
    places = torch.arange(logits.shape[1], device=logits.device)
    keys = (values << _ID_BITS) | (_LOW_BITS - places)
    return _LOW_BITS - (_largest(keys, num) & _LOW_BITS)


def _largest(keys: Tensor, num: int) -> Tensor:
    """The largest of each row, descending."""
    size = keys.shape[1]
    if keys.device.type != "cpu":
        descending = keys.sort(dim=-1, descending=True) if num == size else keys.topk(num, dim=-1)
        return descending.values
    # On a CPU numpy's are vectorised, and torch's are not: a fourth of the time.
    some = keys.numpy()
    if 0 < num < size:
        some = np.partition(some, size - num, axis=-1)
    some = some[:, size - num :]
    return torch.from_numpy(np.sort(some, axis=-1)[:, ::-1].copy())
