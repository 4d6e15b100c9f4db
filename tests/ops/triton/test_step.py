"""The fused decode step against the float64 reference; see `attention.py` for the kinds."""

import pytest
import torch
from torch import Tensor

from dijiang_runtime.ops import reference
from dijiang_runtime.ops.triton import Heads, decode, step
from tests.ops.triton.attention import (
    DEVICE,
    SHAPES,
    Tokens,
    expected,
    make_heads,
    make_states,
    make_tokens,
    normal,
    relative_error,
)

# What numpy says where a GPU gives infinity or NaN without a word.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def run(
    heads: Heads, tokens: Tokens, states: Tensor, source: Tensor, target: Tensor
) -> tuple[Tensor, Tensor]:
    where = source.to(DEVICE), target.to(DEVICE)
    return decode(
        tokens.rows,
        heads,
        tokens.angles,
        tokens.positions,
        states,
        *where,
        gated=True,
        out_dtype=torch.float32,
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_a_step_is_that_of_the_reference_and_touches_no_other_row(shape: str) -> None:
    heads = make_heads(**SHAPES[shape])
    tokens = make_tokens(heads, torch.tensor([3, 0, 150, 77]))
    states = make_states(heads, 12)
    before = states.clone()
    source, target = torch.tensor([2, 11, 7, 4]), torch.tensor([3, 0, 6, 4])

    out, finite = run(heads, tokens, states, source, target)

    for i in range(4):
        one = tokens.part(slice(i, i + 1))
        truth, after = expected(heads, one, before[source[i]], gated=True)
        assert relative_error(out[i], truth[0]) < 1e-6
        assert relative_error(states[target[i]], after) < 1e-6
    others = [row for row in range(12) if row not in target.tolist()]
    assert torch.equal(states[others], before[others])
    assert bool((finite == 1).all())


def test_half_precision_rows_lose_no_more_than_their_own_bits() -> None:
    heads = make_heads(num_heads=4, num_kv_heads=2)
    tokens = make_tokens(heads, torch.tensor([5, 6]), dtype=torch.bfloat16)
    states = make_states(heads, 4)
    truth, after = expected(heads, tokens.part(slice(0, 1)), states[0], gated=True)

    out, _ = run(heads, tokens, states, torch.tensor([0, 1]), torch.tensor([2, 3]))

    assert relative_error(out[0], truth[0]) < 1e-6
    assert relative_error(states[2], after) < 1e-6


def test_a_rows_bits_do_not_depend_on_its_neighbours() -> None:
    heads = make_heads(num_heads=4, num_kv_heads=2)
    results = []
    for rows, place in ((1, 0), (2, 1), (7, 0), (7, 6), (33, 17)):
        tokens = make_tokens(heads, torch.full((rows,), 9), seed=rows)
        tokens.rows[place] = make_tokens(heads, torch.tensor([9])).rows[0]
        states = make_states(heads, 2 * rows, seed=rows)
        states[place] = make_states(heads, 1)[0]
        where = torch.arange(rows)
        out, _ = run(heads, tokens, states, where, where + rows)
        results.append(torch.cat([out[place], states[rows + place].flatten()]))
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("column", [0, -1])
def test_a_row_that_is_not_finite_is_named_and_harms_no_other(bad: float, column: int) -> None:
    """The last column is the feature mass: an infinite one would divide the read-out to 0."""
    heads = make_heads()
    tokens = make_tokens(heads, torch.tensor([4, 4, 4]))
    states = make_states(heads, 6)
    states[1, 1, 3, column] = bad

    out, finite = run(heads, tokens, states, torch.arange(3), torch.arange(3) + 3)

    assert finite.tolist() == [[1, 1], [1, 0], [1, 1]]
    assert bool(out[[0, 2]].isfinite().all())


@pytest.mark.parametrize("by_row", [False, True])
def test_features_may_be_given(by_row: bool) -> None:
    """What serves a model whose features torch computes."""
    q, k = normal(3, 4, 24).softmax(-1), normal(3, 2, 24).softmax(-1)
    v, states = normal(3, 2, 33), normal(6, 2, 24, 33)
    decay = -normal(3, 2).abs() if by_row else -normal(2).abs()
    source, target = torch.tensor([4, 0, 2]).to(DEVICE), torch.tensor([5, 1, 3]).to(DEVICE)
    after = states.double()
    truth = reference.step(q, k, v, decay, after, source, target)

    ours = step(q, k, v, decay, states, source, target)

    assert relative_error(ours, truth) < 1e-6
    assert relative_error(states, after) < 1e-6


def test_no_row_is_no_work() -> None:
    heads = make_heads()
    nobody = torch.zeros(0, dtype=torch.int64)
    out, finite = run(heads, make_tokens(heads, nobody), make_states(heads, 2), nobody, nobody)
    assert (len(out), len(finite)) == (0, 0)
