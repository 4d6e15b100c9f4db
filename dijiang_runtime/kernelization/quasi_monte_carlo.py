"""Frequencies of the Gaussian kernel: random, low-discrepancy, weighted, or along the DCT.

exp(x.y) is the mean of exp(w.x - |x|^2 / 2) exp(w.y - |y|^2 / 2) over w ~ N(0, I). A feature map is
a rule for that mean: m frequencies w_i and weights that stand for the measure.

    d head dim    m features
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from dijiang_runtime.kernelization.dct import dct_matrix
from dijiang_runtime.kernelization.points import (
    chi_quantile,
    gaussian_quantile,
    low_discrepancy_points,
    pseudo_random_points,
)

Rule = Literal["monte_carlo", "qmc", "weighted_qmc", "dct", "authors_dct"]
RULES: tuple[Rule, ...] = get_args(Rule)

# Sobol's first point is the corner of the cube, whose quantile is infinite.
_OPEN = 1e-12
# Keeps the Cholesky factor of nearly equal frequencies finite.
_JITTER = 1e-10


@dataclass(frozen=True, slots=True)
class Frequencies:
    """A rule for the mean over w ~ N(0, I): frequencies [m, d] and weights [m], both float64."""

    w: Tensor
    weights: Tensor


def frequencies(rule: Rule, num_features: int, head_dim: int, *, seed: int) -> Frequencies:
    """Return the frequencies of a rule.

    * `monte_carlo`: independent Gaussian draws.
    * `qmc`: a scrambled Sobol sequence through the Gaussian quantile.
    * `weighted_qmc`: the same with the weights of the box-discrepancy program.
    * `dct`: the paper's: DCT directions, lengths from low-discrepancy points through the quantile
      of a Gaussian vector's length, both signs.
    * `authors_dct`: DCT directions, lengths from the Gaussian quantile of pseudo-random points, as
      the authors' code draws them. They stand for another kernel.
    """
    if rule in ("dct", "authors_dct"):
        w = _along_the_dct(rule, num_features, head_dim, seed)
    elif rule == "monte_carlo":
        generator = torch.Generator("cpu").manual_seed(seed)
        w = torch.randn(num_features, head_dim, generator=generator, dtype=torch.float64)
    else:
        engine = torch.quasirandom.SobolEngine(head_dim, scramble=True, seed=seed)
        points = engine.draw(num_features, dtype=torch.float64)
        w = gaussian_quantile(points.clamp(_OPEN, 1 - _OPEN))
    weights = torch.full((num_features,), 1 / num_features, dtype=torch.float64)
    if rule == "weighted_qmc":
        weights = box_discrepancy_weights(w)
    return Frequencies(w, weights)


def _along_the_dct(rule: Rule, num_features: int, head_dim: int, seed: int) -> Tensor:
    column = torch.arange(num_features) % head_dim
    directions = dct_matrix(head_dim).T[column]
    if rule == "authors_dct":
        lengths = gaussian_quantile(pseudo_random_points(num_features, seed=seed))
    else:
        lengths = chi_quantile(low_discrepancy_points(num_features, seed=seed), head_dim)
        generator = torch.Generator("cpu").manual_seed(seed)
        lengths = lengths * (2 * torch.randint(2, lengths.shape, generator=generator) - 1)
    return directions * lengths[:, None]


def box_discrepancy_weights(w: Tensor, *, box: float | None = None) -> Tensor:
    """The non-negative weights of least box discrepancy, [m] (theorem 3.3 of the paper).

    The discrepancy of frequencies with weights ξ is ξ' H ξ - 2 ξ' v + constant, for the sinc
    kernel of functions whose spectrum lies in [-b, b]^d: a convex quadratic program, solved as
    non-negative least squares.

    Args:
        w: Frequencies, [m, d].
        box: b. Default: 3 d^-1/2, for inputs whose difference has a length of about 3.
    """
    from scipy.linalg import solve_triangular
    from scipy.optimize import nnls

    gram, mean = _box_moments(w, box)
    factor = torch.linalg.cholesky(gram + _JITTER * torch.eye(len(w), dtype=torch.float64))
    target = solve_triangular(factor.numpy(), mean.numpy(), lower=True)
    solution, _ = nnls(factor.T.numpy(), target, maxiter=30 * len(w))
    return torch.from_numpy(solution)


def box_discrepancy(w: Tensor, weights: Tensor, *, box: float | None = None) -> float:
    """The squared box discrepancy of a rule, relative to that of no points at all."""
    gram, mean = _box_moments(w, box)
    b, d = _box(w, box), w.shape[1]
    # The double mean of the kernel: (1 / 2b) * integral of exp(-β^2) over the box, per dimension.
    constant = (torch.pi**0.5 * torch.erf(torch.tensor(b, dtype=torch.float64)) / (2 * b)) ** d
    return float((weights @ gram @ weights - 2 * weights @ mean + constant) / constant)


def _box(w: Tensor, box: float | None) -> float:
    return box if box is not None else 3 * w.shape[1] ** -0.5


def _box_moments(w: Tensor, box: float | None) -> tuple[Tensor, Tensor]:
    """H [m, m] and v [m], the kernel normalised to 1 where frequencies are equal.

    H_lj is the product of sinc(b (w_l - w_j)) over dimensions, v_l the Gaussian mean of it:
    the product of the integral of cos(β w_l) exp(-β^2 / 2) over [0, b], divided by b.
    """
    b = _box(w, box)
    gram = torch.ones(len(w), len(w), dtype=torch.float64)
    for column in w.T:
        gram *= torch.sinc(b * (column[:, None] - column[None, :]) / torch.pi)
    # Gauss-Legendre is exact to rounding here: the integrand is entire and oscillates little.
    nodes, rule = _gauss_legendre(64, b)
    envelope = rule * torch.exp(-nodes.square() / 2) / b
    mean = (torch.cos(w[..., None] * nodes) @ envelope).prod(dim=1)
    return gram, mean


def _gauss_legendre(order: int, end: float) -> tuple[Tensor, Tensor]:
    from scipy.special import roots_legendre

    nodes, weights = roots_legendre(order)
    return torch.from_numpy((nodes + 1) * end / 2), torch.from_numpy(weights * end / 2)
