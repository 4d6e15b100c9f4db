"""Matrix products and norms of the kernels against torch in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dijiang_runtime.ops.triton import group_norm, linear, norm
from tests.ops.triton.attention import normal, relative_error

# What numpy says where a GPU gives infinity or NaN without a word.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

ACTIVATIONS = {
    "none": lambda x: x,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """In float64, of x as the weight's dtype holds it."""
    y = x.to(weight.dtype).double() @ weight.double().T
    return y if bias is None else y + bias.double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_prompt", [False, True])
@pytest.mark.parametrize("outputs", [7, 150])
def test_a_product_is_exact_in_float32(outputs: int, is_prompt: bool, dtype: torch.dtype) -> None:
    # bfloat16 already: the interpreter rounds towards 0 when it converts.
    x = normal(70, 66).to(dtype)
    weight, bias, residual = normal(outputs, 66).to(dtype), normal(outputs), normal(70, outputs)
    truth = product(x, weight, bias) + residual.double()

    ours = linear(x, weight, bias, is_prompt=is_prompt, residual=residual, out_dtype=torch.float32)

    assert relative_error(ours, truth) < 1e-6


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("gated", [False, True])
def test_activations_and_gates(activation: str, gated: bool) -> None:
    x, weight, bias = normal(5, 40), normal(44, 40), normal(44)
    gate, *up = product(x, weight, bias).chunk(2 if gated else 1, dim=1)
    truth = ACTIVATIONS[activation](gate) * (up[0] if gated else 1)

    ours = linear(x, weight, bias, is_prompt=False, activation=activation, gated=gated)

    assert relative_error(ours, truth) < 1e-6


@pytest.mark.parametrize("is_prompt", [False, True])
def test_a_rows_bits_do_not_depend_on_the_number_of_rows(is_prompt: bool) -> None:
    x, weight = normal(200, 66), normal(40, 66)
    whole = linear(x, weight, is_prompt=is_prompt)

    for rows in (slice(0, 1), slice(3, 20), slice(63, 66), slice(100, 200)):
        assert torch.equal(linear(x[rows], weight, is_prompt=is_prompt), whole[rows])


def test_rows_may_have_any_stride_and_any_number() -> None:
    x, weight = normal(9, 100), normal(12, 66)
    ours = linear(x[:, 5:71], weight, is_prompt=False)
    assert relative_error(ours, product(x[:, 5:71], weight, None)) < 1e-6
    assert linear(x[:0, :66], weight, is_prompt=True).shape == (0, 12)


def test_a_nan_stays_in_its_row() -> None:
    x, weight = normal(3, 66), normal(12, 66)
    x[1, 5] = float("nan")
    ours = linear(x, weight, is_prompt=False, activation="relu")
    assert ours.isnan().all(dim=1).tolist() == [False, True, False]
    assert ours.isnan().any(dim=1).tolist() == [False, True, False]


@pytest.mark.parametrize("is_rms", [False, True])
def test_norms_of_one_row_with_two_sets_of_weights(is_rms: bool) -> None:
    x = normal(5, 66) * 3 + 1
    affines = [(normal(66), None if is_rms else normal(66, seed=i)) for i in range(2)]
    if is_rms:
        truth = [F.rms_norm(x.double(), (66,), w.double(), 1e-5) for w, _ in affines]
    else:
        truth = [
            F.layer_norm(x.double(), (66,), w.double(), b.double(), 1e-5)
            for w, b in affines
            if b is not None
        ]

    ours = norm(x, *affines, eps=1e-5, is_rms=is_rms, out_dtype=torch.float32)
    [alone] = norm(x[2:3], affines[1], eps=1e-5, is_rms=is_rms, out_dtype=torch.float32)

    for one, expected in zip(ours, truth, strict=True):
        assert relative_error(one, expected) < 1e-6
    assert torch.equal(alone[0], ours[1][2])


@pytest.mark.parametrize("num_groups", [12, 16, 20])
def test_group_norm_of_groups_that_straddle_heads_and_its_gate(num_groups: int) -> None:
    x, gates = normal(4, 240), normal(4, 300)
    weight, bias, gate = normal(240), normal(240, seed=1), gates[:, 60:]
    truth = F.group_norm(x.double(), num_groups, weight.double(), bias.double(), 1e-5)

    plain = group_norm(
        x, weight, bias, None, num_groups=num_groups, eps=1e-5, out_dtype=torch.float32
    )
    gated = group_norm(
        x, weight, bias, gate, num_groups=num_groups, eps=1e-5, out_dtype=torch.float32
    )

    assert relative_error(plain, truth) < 1e-6
    assert relative_error(gated, truth * F.silu(gate.double())) < 1e-6
