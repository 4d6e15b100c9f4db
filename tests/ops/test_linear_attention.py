"""Every backend against the float64 reference, token by token."""

import pytest
import torch
from torch import Tensor

from dijiang_runtime.models.attention import decay_tables, default_log_decay_rate
from dijiang_runtime.ops import cpu, reference, torch_ops

STEPS = [
    pytest.param(torch_ops.step, id="torch"),
    pytest.param(
        cpu.step,
        id="cpu",
        marks=pytest.mark.skipif(not cpu.is_available(), reason="built without a C++ compiler"),
    ),
]
LENGTHS = [1, 2, 63, 64, 65, 500, 2048]


@pytest.fixture(autouse=True)
def nan_filled_memory():
    """Uninitialised memory holds NaN, so that reading it cannot go unnoticed."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


def inputs(
    length: int, *, batch: int = 2, query_heads: int = 4, heads: int = 2, key_dim: int = 16
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    q = normal(batch, length, query_heads, key_dim).softmax(-1)
    k = normal(batch, length, heads, key_dim).softmax(-1)
    return q, k, normal(batch, length, heads, 12), normal(batch, heads, key_dim, 12)


def log_decay(heads: int = 2) -> Tensor:
    return -default_log_decay_rate(heads).exp().float()


def relative_error(ours: Tensor, truth: Tensor) -> float:
    return float((ours.double() - truth).norm() / truth.norm())


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("chunk_size", [16, 64])
def test_chunk_agrees_with_the_reference(length: int, chunk_size: int) -> None:
    q, k, v, state = inputs(length)
    truth, final = reference.chunk(q, k, v, log_decay(), state)
    ours, our_final = torch_ops.chunk(q, k, v, log_decay(), state, chunk_size=chunk_size)
    assert relative_error(ours, truth) < 2e-6
    assert relative_error(our_final, final) < 2e-6


@pytest.mark.parametrize("split", [1, 2, 63, 64, 65, 300, 499])
def test_a_prompt_may_be_split_anywhere(split: int) -> None:
    q, k, v, state = inputs(500)
    truth, final = reference.chunk(q, k, v, log_decay(), state)
    first, middle = torch_ops.chunk(q[:, :split], k[:, :split], v[:, :split], log_decay(), state)
    rest, last = torch_ops.chunk(q[:, split:], k[:, split:], v[:, split:], log_decay(), middle)
    assert relative_error(torch.cat([first, rest], dim=1), truth) < 2e-6
    assert relative_error(last, final) < 2e-6


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("length", LENGTHS)
def test_step_by_step_agrees_with_the_reference(length: int, step) -> None:
    q, k, v, state = inputs(length)
    truth, final = reference.chunk(q, k, v, log_decay(), state)
    # Two rows for each sequence, written in turn, as the engine does.
    states = torch.full((4, *state.shape[1:]), float("nan"))
    states[[0, 2]] = state
    outputs = []
    for t in range(length):
        source = torch.tensor([0, 2]) + t % 2
        target = torch.tensor([0, 2]) + (t + 1) % 2
        args = (q[:, t], k[:, t], v[:, t], log_decay(), states, source, target)
        outputs.append(step(*args))
    assert relative_error(torch.stack(outputs, dim=1), truth) < 2e-6
    assert relative_error(states[torch.tensor([0, 2]) + length % 2], final) < 2e-6


def test_reference_step_is_reference_chunk_of_one_token() -> None:
    q, k, v, state = inputs(1)
    states = torch.zeros(5, *state.shape[1:], dtype=torch.float64)
    states[[3, 1]] = state.double()
    source, target = torch.tensor([3, 1]), torch.tensor([2, 4])
    step = reference.step(q[:, 0], k[:, 0], v[:, 0], log_decay(), states, source, target)
    truth, final = reference.chunk(q, k, v, log_decay(), state)
    assert torch.equal(step, truth[:, 0])
    assert torch.equal(states[[2, 4]], final)


def test_decay_as_extreme_as_2048_positions_of_the_fastest_head_stays_exact() -> None:
    """γ^2048 of the fastest head is e^-65; one such decay for every token leaves only the token."""
    extreme = torch.tensor([2048 * float(log_decay()[0]), 0.0])
    q, k, v, state = inputs(2048)
    truth, final = reference.chunk(q, k, v, extreme, state)
    ours, our_final = torch_ops.chunk(q, k, v, extreme, state)
    assert bool(torch.isfinite(ours).all())
    assert relative_error(ours, truth) < 2e-6
    assert relative_error(our_final, final) < 2e-6


def test_position_dependent_decay_agrees_with_the_parallel_form_of_trained_tables() -> None:
    """Weights D1[n] D2[j], the authors' tables perturbed and with sign flips, computed directly."""
    heads, length = 2, 500
    generator = torch.Generator().manual_seed(0)
    gamma = log_decay(heads).double().exp()
    n = torch.arange(length)
    noise = 1 + 0.1 * torch.randn(2, heads, length, generator=generator, dtype=torch.float64)
    signs = torch.where(torch.rand(2, heads, length, generator=generator) < 0.02, -1.0, 1.0)
    d1 = gamma[:, None] ** n * noise[0] * signs[0]
    d2 = gamma[:, None] ** -n * noise[1] * signs[1]

    q, k, v, _ = inputs(length, query_heads=2)
    scores = torch.einsum("bnhk,bjhk->bhnj", q.double(), k.double())
    weights = (d1[:, :, None] * d2[:, None, :]).tril()
    truth = torch.einsum("bhnj,bjhv->bnhv", scores * weights, v.double())

    g, q_scale, k_scale = decay_tables(d1, d2)
    assert float(g.max()) <= 0.0
    assert float(k_scale.abs().max()) <= 1.0
    zero = torch.zeros(2, heads, 16, 12)
    scaled = (q * q_scale[..., None].float(), k * k_scale[..., None].float())
    ours, _ = torch_ops.chunk(*scaled, v, g.float(), zero)
    assert relative_error(ours, truth) < 2e-6


def test_gradients_agree_with_float64_autograd_of_the_reference() -> None:
    q, k, v, state = inputs(130)
    rate = default_log_decay_rate(2)
    weight = torch.randn(2, 130, 4, 12, generator=torch.Generator().manual_seed(1))

    def gradients(op, dtype: torch.dtype) -> list[Tensor]:
        leaves = [x.detach().to(dtype).requires_grad_() for x in (q, k, v, rate, state)]
        o, final = op(*leaves[:3], -leaves[3].exp(), leaves[4])
        ((o * weight.to(dtype)).sum() + final.square().sum()).backward()
        return [leaf.grad for leaf in leaves]

    truth = gradients(reference.chunk, torch.float64)
    for ours, expected in zip(gradients(torch_ops.chunk, torch.float32), truth, strict=True):
        assert relative_error(ours, expected) < 1e-5


@pytest.mark.parametrize("step", STEPS)
def test_step_takes_a_decay_for_every_row(step) -> None:
    q, k, v, state = inputs(1, batch=3)
    decay = -torch.rand(3, 2)
    states = torch.cat([state, torch.zeros_like(state)])
    source, target = torch.arange(3), torch.arange(3) + 3
    truth = reference.step(q[:, 0], k[:, 0], v[:, 0], decay, states.double(), source, target)
    ours = step(q[:, 0], k[:, 0], v[:, 0], decay, states, source, target)
    assert relative_error(ours, truth) < 1e-6


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("value_dim", [12, 33, 64])
def test_a_rows_bits_do_not_depend_on_its_neighbours_in_a_step(value_dim: int, step) -> None:
    generator = torch.Generator().manual_seed(7)
    key_dim, heads = 32, 3

    def batch(rows: int) -> list[Tensor]:
        shapes = [(rows, heads, key_dim), (rows, heads, key_dim), (rows, heads, value_dim)]
        return [torch.randn(*shape, generator=generator) for shape in shapes]

    marked, state = batch(1), torch.randn(heads, key_dim, value_dim, generator=generator)
    results = []
    for rows in (1, 2, 7, 16, 64, 128):
        for place in {0, rows // 2, rows - 1}:
            tensors = batch(rows)
            for tensor, ours in zip(tensors, marked, strict=True):
                tensor[place] = ours[0]
            states = torch.randn(2 * rows, heads, key_dim, value_dim, generator=generator)
            states[place] = state
            source, target = torch.arange(rows), torch.arange(rows) + rows
            o = step(*tensors, log_decay(heads), states, source, target)
            results.append(torch.cat([o[place].flatten(), states[rows + place].flatten()]))
    assert all(torch.equal(result, results[0]) for result in results)
