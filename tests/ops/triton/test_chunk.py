"""Packed prompts against the float64 reference; see `attention.py` for the kinds."""

import pytest
import torch
from torch import Tensor

from dijiang_runtime.ops import reference
from dijiang_runtime.ops.triton import Heads, chunk, prefill
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

PACK = [1, 65, 2, 64, 33]
"""Tokens of each part."""


def run(heads: Heads, tokens: Tokens, states: Tensor, segments: list[tuple[int, ...]]):
    return prefill(
        tokens.rows,
        heads,
        tokens.angles,
        tokens.positions,
        states,
        torch.tensor(segments).to(DEVICE),
        gated=True,
        out_dtype=torch.float32,
    )


def segments_of(lengths: list[int]) -> list[tuple[int, int, int, int]]:
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    return [(starts[i], n, 2 * i, 2 * i + 1) for i, n in enumerate(lengths)]


def positions_of(lengths: list[int]) -> Tensor:
    # Each part is somewhere else in its prompt.
    return torch.cat([torch.arange(n) + 64 * (i % 3) for i, n in enumerate(lengths)])


@pytest.mark.parametrize("shape", SHAPES)
def test_a_pack_of_unequal_parts_is_that_of_the_reference(shape: str) -> None:
    heads = make_heads(**SHAPES[shape])
    tokens = make_tokens(heads, positions_of(PACK))
    states = make_states(heads, 2 * len(PACK) + 2)
    before = states.clone()

    out, finite = run(heads, tokens, states, segments_of(PACK))

    for start, length, source, target in segments_of(PACK):
        part = tokens.part(slice(start, start + length))
        truth, after = expected(heads, part, before[source], gated=True)
        assert relative_error(out[start : start + length], truth) < 2e-6
        assert relative_error(states[target], after) < 2e-6
    assert torch.equal(states[::2], before[::2])
    assert torch.equal(states[-2:], before[-2:])
    assert bool((finite == 1).all())


@pytest.mark.parametrize("length", [1, 63, 64, 65, 300])
def test_chunk_agrees_with_the_reference(length: int) -> None:
    q, k = normal(2, length, 4, 16).softmax(-1), normal(2, length, 2, 16).softmax(-1)
    v, state = normal(2, length, 2, 40), normal(2, 2, 16, 40)
    decay = torch.tensor([-0.03, -2.0]).to(DEVICE)
    truth, final = reference.chunk(q, k, v, decay, state)

    ours, our_final = chunk(q, k, v, decay, state)

    assert relative_error(ours, truth) < 2e-6
    assert relative_error(our_final, final) < 2e-6


def test_a_prompt_may_be_cut_at_chunks() -> None:
    """Bit by bit: the second part starts from the state that the first one left."""
    heads = make_heads(num_heads=4, num_kv_heads=2)
    tokens = make_tokens(heads, torch.arange(150))
    states = make_states(heads, 4)
    whole, _ = run(heads, tokens, states, [(0, 150, 0, 1)])

    first, _ = run(heads, tokens.part(slice(0, 64)), states, [(0, 64, 0, 2)])
    rest, _ = run(heads, tokens.part(slice(64, 150)), states, [(0, 86, 2, 3)])

    assert torch.equal(torch.cat([first, rest]), whole)
    assert torch.equal(states[3], states[1])


def test_a_parts_bits_do_not_depend_on_its_neighbours() -> None:
    heads = make_heads()
    tokens = make_tokens(heads, positions_of(PACK))
    states = make_states(heads, 2 * len(PACK))
    packed, _ = run(heads, tokens, states, segments_of(PACK))

    for start, length, source, target in segments_of(PACK):
        after = states[target].clone()
        rows = slice(start, start + length)
        alone, _ = run(heads, tokens.part(rows), states, [(0, length, source, target)])
        assert torch.equal(alone, packed[rows])
        assert torch.equal(states[target], after)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("column", [0, -1])
def test_a_part_that_is_not_finite_is_named_and_harms_no_other(bad: float, column: int) -> None:
    heads = make_heads()
    tokens = make_tokens(heads, positions_of(PACK))
    states = make_states(heads, 2 * len(PACK))
    states[2, 1, 3, column] = bad

    out, finite = run(heads, tokens, states, segments_of(PACK))

    assert finite.tolist() == [[1, 1], [1, 0], [1, 1], [1, 1], [1, 1]]
    assert bool(out[66:].isfinite().all())
