"""The discrete cosine transform as a matrix."""

import math

import torch
from torch import Tensor


def dct_matrix(size: int, *, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return the orthonormal DCT-II matrix C, shape [size, size].

    `C @ x` is the DCT-II of x and `x @ C` its inverse, the DCT-III. The authors' code multiplies
    from the right, so it computes the inverse transform.

    C[k, j] = s_k cos(pi (2j + 1) k / (2 size)), s_0 = sqrt(1 / size), s_k = sqrt(2 / size).
    """
    k = torch.arange(size, dtype=torch.float64, device="cpu")[:, None]
    j = torch.arange(size, dtype=torch.float64, device="cpu")[None, :]
    matrix = torch.cos(math.pi * (2 * j + 1) * k / (2 * size)) * math.sqrt(2.0 / size)
    matrix[0] = math.sqrt(1.0 / size)
    return matrix.to(dtype)
