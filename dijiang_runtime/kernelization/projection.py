"""The matrix P = C diag(t) of a feature map, before any training."""

from typing import Literal

import torch
from torch import Tensor

from dijiang_runtime.kernelization.dct import dct_matrix
from dijiang_runtime.kernelization.points import (
    gaussian_quantile,
    low_discrepancy_points,
    pseudo_random_points,
)

PointSet = Literal["pseudo_random", "low_discrepancy"]


def dct_projection(
    head_dim: int, num_columns: int, *, seed: int, points: PointSet = "pseudo_random"
) -> Tensor:
    """Return P, shape [head_dim, num_columns], float32: column j is a DCT direction times t_j.

    The diagonal t is the Gaussian quantile of one point of (0, 1) per column. With pseudo-random
    points and `num_columns == head_dim` this is what the authors' code draws for a layer; beyond
    `head_dim` columns the directions repeat with fresh t.

    Args:
        head_dim: d, the size of a query or key.
        num_columns: Features before any negated half.
        seed: Of the points. The same seed gives the same matrix.
        points: How the points are chosen.
    """
    draw = pseudo_random_points if points == "pseudo_random" else low_discrepancy_points
    scale = gaussian_quantile(draw(num_columns, seed=seed))
    directions = dct_matrix(head_dim)
    column = torch.arange(num_columns, device="cpu") % head_dim
    return (directions[:, column] * scale).float()
