"""Softmax over a window, linear attention over the rest: every form against the formula."""

import dataclasses
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from dijiang_runtime.ops import cpu, torch_ops, windowed
from dijiang_runtime.ops.windowed import WindowInputs
from tests.ops.formula import windowed_by_formula

WINDOW, SINKS = 20, 3
SHAPES = [(20, 3), (20, 0), (64, 4), (3, 5), (1, 0)]


def softmax_features(keys: Tensor, tiles: object, projection: Tensor) -> Tensor:
    return torch.einsum("nhd,hdm->nhm", keys, projection.to(keys)).softmax(-1)


def inputs(
    length: int,
    *,
    window: int = WINDOW,
    sinks: int = SINKS,
    query_heads: int = 4,
    heads: int = 2,
    dtype: torch.dtype = torch.float64,
) -> WindowInputs:
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return WindowInputs(
        q=normal(length, query_heads, 8),
        k=normal(length, heads, 8),
        v=normal(length, heads, 8),
        phi_q=normal(length, query_heads, 6).softmax(-1),
        mix=normal(length, query_heads),
        log_decay=torch.tensor([-0.1, -0.002][:heads], dtype=dtype),
        features=partial(softmax_features, projection=normal(heads, 8, 6)),
        window=window,
        sinks=sinks,
    )


def empty(x: WindowInputs, rows: int = 1) -> tuple[Tensor, Tensor]:
    heads, dim = x.k.shape[-2:]
    state = x.k.new_zeros(rows, heads, x.phi_q.shape[-1], dim + 1)
    return state, x.k.new_zeros(rows, heads, 2, x.sinks + x.window + 1, dim)


def in_parts(x: WindowInputs, cuts: list[int], **options: int) -> tuple[Tensor, Tensor, Tensor]:
    state, cache = empty(x)
    outputs, start = [], 0
    for stop in cuts:
        part = x.rows(slice(start, stop)).map(lambda rows: rows.unsqueeze(0))
        o, state, cache = windowed.chunk(part, state, cache, torch.tensor([start]), **options)
        outputs.append(o[0])
        start = stop
    return torch.cat(outputs), state, cache


def at_once(x: WindowInputs) -> Tensor:
    return windowed.whole(x.map(lambda rows: rows.unsqueeze(0)))[0]


def step_by_step(x: WindowInputs, linear_step=torch_ops.step) -> tuple[Tensor, Tensor, Tensor]:
    """Two rows, written in turn, as the engine does."""
    states, caches = empty(x, rows=2)
    outputs = []
    for t in range(len(x.q)):
        source, target = torch.tensor([t % 2]), torch.tensor([(t + 1) % 2])

        def linear(q: Tensor, k: Tensor, v: Tensor, named=(source, target)) -> Tensor:
            return linear_step(q, k, v, x.log_decay, states, *named)

        row, position = x.rows(slice(t, t + 1)), torch.tensor([t])
        outputs.append(windowed.step(row, position, caches, source, target, linear))
    last = len(x.q) % 2
    return torch.cat(outputs), states[last : last + 1], caches[last : last + 1]


@pytest.mark.parametrize("length", [1, 19, 20, 21, 23, 63, 64, 65, 84, 130])
@pytest.mark.parametrize(("window", "sinks"), SHAPES)
def test_every_form_is_the_formula(length: int, window: int, sinks: int) -> None:
    x = inputs(length, window=window, sinks=sinks)
    expected = windowed_by_formula(x)
    whole, state, cache = in_parts(x, [length])
    cuts = sorted({-(-length // 3), length})
    for o, its_state, its_cache in (
        (whole, state, cache),
        in_parts(x, [length], chunk_size=16),
        in_parts(x, cuts, chunk_size=16),
        step_by_step(x),
        (at_once(x), state, cache),
    ):
        assert torch.allclose(o, expected, rtol=0, atol=1e-12)
        assert torch.allclose(its_state, state, rtol=0, atol=1e-12)
        assert torch.equal(its_cache, cache)


@pytest.mark.parametrize(("query_heads", "heads"), [(2, 2), (6, 2), (4, 1)])
def test_query_heads_of_a_group_share_keys_values_and_state(query_heads: int, heads: int) -> None:
    x = inputs(50, query_heads=query_heads, heads=heads)
    for o in (in_parts(x, [50])[0], step_by_step(x)[0], at_once(x)):
        assert torch.allclose(o, windowed_by_formula(x), rtol=0, atol=1e-12)


def test_a_window_that_holds_everything_is_softmax_attention() -> None:
    x = inputs(64, window=64, sinks=0, query_heads=2)
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(rows.transpose(0, 1) for rows in (x.q, x.k, x.v)), is_causal=True, scale=1.0
    ).transpose(0, 1)
    for o, state, _ in (in_parts(x, [64]), step_by_step(x)):
        assert torch.allclose(o, expected, rtol=0, atol=1e-12)
        assert not state.any()


def test_rows_of_padding_before_a_sequence_change_nothing() -> None:
    x, padding = inputs(50), 7
    state, cache = empty(x)

    def padded(rows: Tensor) -> Tensor:
        return torch.cat([torch.full_like(rows[:padding], 3.0), rows]).unsqueeze(0)

    o, state, cache = windowed.chunk(x.map(padded), state, cache, torch.tensor([-padding]))
    expected, its_state, its_cache = in_parts(x, [50])
    assert torch.allclose(o[0, padding:], expected, rtol=0, atol=1e-12)
    assert torch.allclose(state, its_state, rtol=0, atol=1e-12)
    assert torch.equal(cache, its_cache)


@pytest.mark.parametrize("length", [500, 2048])
def test_float32_agrees_with_float64(length: int) -> None:
    expected, _, _ = in_parts(inputs(length), [length])
    x = inputs(length, dtype=torch.float32)
    steps = [torch_ops.step, *([cpu.step] if cpu.is_available() else [])]
    for o in (in_parts(x, [length])[0], *(step_by_step(x, step)[0] for step in steps)):
        assert float((o - expected).norm() / expected.norm()) < 2e-6


@pytest.mark.parametrize(("scale", "shift"), [(50.0, 0.0), (1.0, 800.0), (1.0, -2000.0)])
def test_scores_and_mixes_far_beyond_the_range_of_exp_stay_exact(
    scale: float, shift: float
) -> None:
    wide = inputs(60)
    wide = dataclasses.replace(wide, q=wide.q * scale, mix=wide.mix + shift)
    narrow = dataclasses.replace(
        wide.map(lambda rows: rows.float()), log_decay=wide.log_decay.float()
    )
    expected, _, _ = in_parts(wide, [60])
    for o in (in_parts(narrow, [60])[0], step_by_step(narrow)[0], at_once(narrow)):
        assert torch.allclose(o.double(), expected, rtol=0, atol=1e-4)


def test_gradients_agree_with_float64_autograd_of_the_formula() -> None:
    """Those of the learned decay, mix and feature map among them."""

    def gradients(dtype: torch.dtype, forward: Callable[[WindowInputs], Tensor]) -> list[Tensor]:
        x = inputs(70, dtype=dtype)
        projection = torch.linspace(-1, 1, 96).reshape(2, 8, 6).to(dtype)
        features = partial(softmax_features, projection=projection)
        x = dataclasses.replace(x, features=features)
        leaves = [x.q, x.k, x.v, x.phi_q, x.mix, x.log_decay, projection]
        for leaf in leaves:
            leaf.requires_grad_()
        weight = torch.linspace(-1, 1, 70 * 4 * 8).reshape(70, 4, 8).to(dtype)
        (forward(x).to(dtype) * weight).sum().backward()
        return [leaf.grad.double() for leaf in leaves if leaf.grad is not None]

    expected = gradients(torch.float64, windowed_by_formula)
    ours = gradients(torch.float32, at_once)
    assert len(ours) == len(expected) == 7
    for ours_, theirs in zip(ours, expected, strict=True):
        assert float((ours_ - theirs).norm() / theirs.norm()) < 1e-5


@pytest.mark.parametrize("column", [0, -1])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("length", [5, 40])
def test_a_state_that_is_not_finite_shows_in_the_next_output(
    length: int, value: float, column: int
) -> None:
    """The last column is the mass of the features, which is 0 while everything is near."""
    x = inputs(length + 1)
    state, cache = in_parts(x.rows(slice(0, length)), [length])[1:]
    state[0, 0, 2, column] = value
    source, last = torch.tensor([0]), x.rows(slice(length, length + 1))

    def linear(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch_ops.step(q, k, v, x.log_decay, state, source, source)

    out = windowed.step(last, torch.tensor([length]), cache, source, source, linear)

    assert not out[0, 0].isfinite().all()
    assert out[0, 2:].isfinite().all()  # Queries of the other head.


def test_a_cache_has_one_size_at_any_length() -> None:
    x = inputs(200)
    shapes = {in_parts(x.rows(slice(0, n)), [n])[2].shape for n in (1, 20, 21, 200)}
    assert shapes == {(1, 2, 2, SINKS + WINDOW + 1, 8)}


def test_memory_grows_with_the_length_not_with_its_square() -> None:
    def kept(length: int) -> int:
        """Elements that the backward pass holds."""
        sizes: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        x = inputs(length, dtype=torch.float32)
        x.q.requires_grad_()
        x.k.requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            at_once(x)
        return sum(sizes.values())

    assert kept(4096) < 4.2 * kept(1024)
