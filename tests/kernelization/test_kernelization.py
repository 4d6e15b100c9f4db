import math

import numpy as np
import pytest
import scipy.fft
import scipy.special
import scipy.stats
import torch

from dijiang_runtime.kernelization.dct import dct_matrix
from dijiang_runtime.kernelization.feature_map import softmax_features, weighted_exp_features
from dijiang_runtime.kernelization.points import (
    chi_quantile,
    gaussian_quantile,
    low_discrepancy_points,
    pseudo_random_points,
)
from dijiang_runtime.kernelization.projection import dct_projection


@pytest.mark.parametrize("size", [1, 2, 16, 64, 80])
def test_dct_matrix_is_scipys(size: int) -> None:
    expected = scipy.fft.dct(np.eye(size), axis=0, norm="ortho")
    assert np.allclose(dct_matrix(size).numpy(), expected, atol=1e-14)


def test_dct_matrix_from_the_right_is_the_inverse_transform() -> None:
    x = np.random.default_rng(0).normal(size=64)
    ours = (torch.from_numpy(x) @ dct_matrix(64)).numpy()
    assert np.allclose(ours, scipy.fft.idct(x, norm="ortho"), atol=1e-13)


@pytest.mark.parametrize("degrees", [1, 2, 16, 64, 256])
def test_chi_quantile_is_scipys(degrees: int) -> None:
    points = torch.linspace(0.001, 0.999, 57, dtype=torch.float64)
    expected = scipy.stats.chi.ppf(points.numpy(), degrees)
    assert np.allclose(chi_quantile(points, degrees).numpy(), expected, rtol=1e-9)


def test_gaussian_quantile_is_scipys() -> None:
    points = torch.tensor([1e-12, 0.01, 0.5, 0.99], dtype=torch.float64)
    expected = scipy.special.ndtri(points.numpy())
    assert np.allclose(gaussian_quantile(points).numpy(), expected, rtol=1e-12, atol=1e-15)


def star_discrepancy(points: np.ndarray) -> float:
    """Exact in one dimension (Niederreiter 1992, theorem 2.6)."""
    x, n = np.sort(points), len(points)
    return 1 / (2 * n) + float(np.abs(x - (2 * np.arange(1, n + 1) - 1) / (2 * n)).max())


@pytest.mark.parametrize("count", [64, 257, 1000])
def test_low_discrepancy_points_are_far_more_even_than_random_ones(count: int) -> None:
    ours = [star_discrepancy(low_discrepancy_points(count, seed=s).numpy()) for s in range(8)]
    random = [star_discrepancy(pseudo_random_points(count, seed=s).numpy()) for s in range(8)]
    # The bound for a shifted van der Corput sequence; random points are about 0.87 / sqrt(n).
    assert max(ours) <= 2 * (math.log2(count) / 3 + 1) / count
    assert np.mean(random) > 2 * np.mean(ours)


def test_points_depend_on_the_seed_alone() -> None:
    for draw in (pseudo_random_points, low_discrepancy_points):
        assert torch.equal(draw(64, seed=3), draw(64, seed=3))
        assert not torch.equal(draw(64, seed=3), draw(64, seed=4))


def test_projection_columns_are_dct_columns_of_gaussian_length() -> None:
    projection = dct_projection(64, 64, seed=5).double()
    lengths = dct_matrix(64).T @ projection
    off_diagonal = lengths - torch.diag(lengths.diagonal())
    assert off_diagonal.abs().max() < 1e-6
    expected = scipy.special.ndtri(pseudo_random_points(64, seed=5).numpy())
    assert np.allclose(lengths.diagonal().numpy(), expected, atol=1e-6)


def test_projection_repeats_directions_beyond_the_head_dim() -> None:
    projection = dct_projection(8, 20, seed=1)
    directions = projection / projection.norm(dim=0)
    assert torch.allclose((directions[:, 1] * directions[:, 9]).sum().abs(), torch.tensor(1.0))
    assert projection.shape == (8, 20)


def test_softmax_features_are_positive_and_sum_to_one_per_half() -> None:
    projected = torch.randn(5, 3, 16, dtype=torch.float64) * 30
    assert torch.allclose(softmax_features(projected).sum(-1), torch.ones(5, 3).double())
    both = softmax_features(projected, negated_half=True)
    assert both.shape == (5, 3, 32)
    assert bool((both >= 0).all())
    assert torch.equal(both[..., 16:], softmax_features(-projected))


def test_weighted_exp_features_are_equation_12() -> None:
    projection = dct_projection(8, 8, seed=0).double()
    x, weight = torch.randn(4, 8).double(), torch.rand(8).double()
    ours = weighted_exp_features(x @ projection, weight)
    for row in range(4):
        for i in range(8):
            expected = weight[i] * math.exp(sum(projection[j, i] * x[row, j] for j in range(8)))
            assert math.isclose(ours[row, i], expected, rel_tol=1e-12)
