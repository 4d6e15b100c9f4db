"""Points of the unit interval, and the quantile functions that turn them into frequencies.

The paper's positive fixed features split a Gaussian frequency w into a direction on the sphere and
a radius, and draw the radius as the inverse CDF of a point t of (0, 1) (theorem 3.2). With
low-discrepancy points the average over frequencies converges faster than with random ones.
"""

import math

import torch
from torch import Tensor


def pseudo_random_points(count: int, *, seed: int) -> Tensor:
    """Return `count` independent uniform points of (0, 1), float64, as the authors' code draws."""
    generator = torch.Generator("cpu").manual_seed(seed)
    points = torch.rand(count, generator=generator, dtype=torch.float64, device="cpu")
    return points.clamp(min=torch.finfo(torch.float64).tiny)


def low_discrepancy_points(count: int, *, seed: int) -> Tensor:
    """Return `count` points of (0, 1) whose star discrepancy is O(log(count) / count), float64.

    A van der Corput sequence in base 2, shifted modulo 1 by a random amount (Cranley and
    Patterson), so that every point is uniform on its own and different seeds are independent.
    """
    index = torch.arange(count, dtype=torch.int64, device="cpu")
    points = torch.zeros(count, dtype=torch.float64, device="cpu")
    weight = 0.5
    while bool(index.any()):
        points += weight * (index & 1)
        index >>= 1
        weight /= 2
    shift = pseudo_random_points(1, seed=seed)
    points = torch.remainder(points + shift, 1.0)
    return points.clamp(min=torch.finfo(torch.float64).tiny)


def gaussian_quantile(points: Tensor) -> Tensor:
    """The inverse CDF of the standard normal distribution, elementwise, in float64."""
    return torch.special.ndtri(points.double())


def chi_quantile(points: Tensor, degrees: int) -> Tensor:
    """The inverse CDF of the chi distribution: the radius of a Gaussian in `degrees` dimensions.

    Found by bisection on the regularised incomplete gamma function, to float64 precision.
    """
    points = points.double()
    low = torch.zeros_like(points)
    # The chi distribution concentrates around sqrt(degrees) with a standard deviation below 1.
    high = torch.full_like(points, math.sqrt(degrees) + 40.0)
    shape = torch.tensor(degrees / 2, dtype=torch.float64)
    for _ in range(80):
        middle = (low + high) / 2
        below = torch.special.gammainc(shape, middle * middle / 2) < points
        low = torch.where(below, middle, low)
        high = torch.where(below, high, middle)
    return (low + high) / 2
