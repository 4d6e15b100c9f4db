"""Packed matrix products on every kind of processor that this one can stand for."""

import pytest
import torch

from dijiang_runtime.ops.cpu.library import Context, targets
from dijiang_runtime.ops.cpu.packed import WEIGHT_FORMATS, WeightFormat, multiply, pack, unpack

pytestmark = pytest.mark.skipif(not targets(), reason="built without a C++ compiler")

SHAPES = [(512, 1024), (100, 37), (66, 131), (5, 3)]
# Relative, of a product of random numbers: rounding of the activations.
TOLERANCE = {"float32": 1e-6, "bfloat16": 3e-3, "int8": 1.2e-2}


def operands(
    inputs: int, outputs: int, weight_format: WeightFormat, rows: int = 64
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(inputs)
    x = torch.randn(rows, inputs, generator=generator)
    weight = torch.randn(outputs, inputs, generator=generator)
    return x, weight, torch.randn(outputs, generator=generator)


@pytest.mark.parametrize("target", targets())
@pytest.mark.parametrize("weight_format", WEIGHT_FORMATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_agree_with_float64(
    shape: tuple[int, int], weight_format: WeightFormat, target: str
) -> None:
    x, weight, bias = operands(*shape, weight_format)
    matrix = pack(weight, bias, weight_format)
    truth = x.double() @ unpack(matrix).double().T + bias.double()

    ours = multiply(x, matrix, Context(target, 2))

    assert float((ours - truth).norm() / truth.norm()) < TOLERANCE[weight_format]


@pytest.mark.parametrize("target", targets())
@pytest.mark.parametrize("weight_format", WEIGHT_FORMATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_rows_bits_depend_on_nothing_but_the_row(
    shape: tuple[int, int], weight_format: WeightFormat, target: str
) -> None:
    x, weight, bias = operands(*shape, weight_format)
    matrix = pack(weight, bias, weight_format)
    alone = torch.cat([multiply(row[None], matrix, Context(target, 1)) for row in x])

    for num_threads in (1, 3):
        context = Context(target, num_threads)
        for rows in range(1, len(x) + 1):
            assert torch.equal(multiply(x[:rows], matrix, context), alone[:rows])
            assert torch.equal(multiply(x[-rows:], matrix, context), alone[-rows:])


@pytest.mark.parametrize("target", targets())
@pytest.mark.parametrize("outputs", [33_024, 33_025])
def test_a_product_that_does_not_fit_into_a_cache_has_the_same_bits(
    outputs: int, target: str
) -> None:
    """It is written past the caches where its rows are whole lines of them."""
    x, weight, bias = operands(16, outputs, "int8", rows=40)
    assert 4 * len(x) * outputs > 4 * 2**20
    matrix = pack(weight, bias, "int8")
    context = Context(target, 2)

    together = multiply(x, matrix, context)

    assert torch.equal(torch.cat([multiply(row[None], matrix, context) for row in x]), together)


@pytest.mark.parametrize("target", targets())
def test_int8_products_are_the_same_bits_on_every_processor(target: str) -> None:
    # Sums are exact, also of the largest numbers that there can be.
    x, weight, bias = operands(2048, 70, "int8")
    x[0], weight[0] = 3.0, -2.0
    matrix = pack(weight, bias, "int8")

    assert torch.equal(
        multiply(x, matrix, Context(target, 1)), multiply(x, matrix, Context("portable", 1))
    )


@pytest.mark.parametrize("target", targets())
@pytest.mark.parametrize("weight_format", WEIGHT_FORMATS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_shows_in_its_row_only(
    bad: float, weight_format: WeightFormat, target: str
) -> None:
    x, weight, bias = operands(66, 131, weight_format, rows=7)
    matrix = pack(weight, bias, weight_format)
    context = Context(target, 1)
    expected = multiply(x, matrix, context)
    x[3, 17] = bad

    ours = multiply(x, matrix, context)

    assert not ours[3].isfinite().any()
    others = [0, 1, 2, 4, 5, 6]
    assert torch.equal(ours[others], expected[others])


def test_rows_and_columns_of_nothing_stay_nothing() -> None:
    weight = torch.zeros(3, 8)
    weight[1] = 1.0
    matrix = pack(weight, None, "int8")

    out = multiply(torch.stack([torch.zeros(8), torch.full((8,), 1e-38)]), matrix)

    assert out.isfinite().all()
    assert not out[0].any() and not out[:, 0].any()


def test_a_target_that_does_not_run_here_is_refused() -> None:
    with pytest.raises(ValueError, match="these do: .*portable"):
        Context("sparc", 1)
