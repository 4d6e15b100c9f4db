"""The training operator: float64 autograd of the token-by-token reference is the truth."""

import pytest
import torch
from torch import Tensor

from dijiang_runtime.ops import reference, torch_ops
from dijiang_runtime.ops.training import chunkwise

# Half-lives of half a token and of 65,536 tokens.
EXTREME = torch.tensor([-1.4, -1.06e-5], dtype=torch.float64)


def leaves(length: int, dtype: torch.dtype, log_decay: Tensor = EXTREME) -> list[Tensor]:
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    q = normal(2, length, 4, 16).softmax(-1)
    k = normal(2, length, 2, 16).softmax(-1)
    inputs = (q, k, normal(2, length, 2, 9), log_decay)
    return [x.to(dtype, copy=True).requires_grad_() for x in inputs]


def by_reference(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> Tensor:
    return reference.chunk(q, k, v, log_decay, q.new_zeros(2, 2, 16, 9))[0]


def by_chunks(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> Tensor:
    """Differentiable, and much faster than the reference, which holds it to the truth elsewhere."""
    return torch_ops.chunk(q, k, v, log_decay, q.new_zeros(2, 2, 16, 9))[0]


def output_and_gradients(attend, inputs: list[Tensor]) -> list[Tensor]:
    o = attend(*inputs)
    weight = torch.randn(o.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (o * weight.to(o.dtype)).sum().backward()
    return [o.detach(), *(x.grad for x in inputs)]


def relative_error(ours: Tensor, truth: Tensor) -> float:
    return float((ours.double() - truth).norm() / truth.norm())


@pytest.mark.parametrize("chunk_size", [16, 64])
@pytest.mark.parametrize("length", [2, 63, 64, 65, 200])
def test_outputs_and_gradients_agree_with_float64_autograd(length: int, chunk_size: int) -> None:
    truth = output_and_gradients(by_reference, leaves(length, torch.float64))
    ours = output_and_gradients(
        lambda *x: chunkwise(*x, chunk_size=chunk_size), leaves(length, torch.float32)
    )
    for found, expected in zip(ours, truth, strict=True):
        assert found.dtype == torch.float32
        assert relative_error(found, expected) < 1e-5


def test_the_gradient_of_each_decay_alone_agrees_with_float64_autograd() -> None:
    truth = output_and_gradients(by_reference, leaves(200, torch.float64))[4]
    ours = output_and_gradients(chunkwise, leaves(200, torch.float32))[4]
    for found, expected in zip(ours, truth, strict=True):
        assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_float64_inputs_are_computed_in_float64() -> None:
    truth = output_and_gradients(by_reference, leaves(130, torch.float64))
    ours = output_and_gradients(chunkwise, leaves(130, torch.float64))
    assert all(relative_error(a, b) < 1e-13 for a, b in zip(ours, truth, strict=True))


def test_the_gradients_are_those_of_finite_differences() -> None:
    log_decay = torch.tensor([-0.3, -0.01], dtype=torch.float64)
    inputs = leaves(11, torch.float64, log_decay)
    assert torch.autograd.gradcheck(lambda *x: chunkwise(*x, chunk_size=4), inputs)


def test_the_slowest_and_the_fastest_decay_stay_exact_over_8192_tokens() -> None:
    """Fast: a half-life of 0.02 tokens; slow: a decay of exactly 1."""
    extreme = torch.tensor([-35.0, 0.0], dtype=torch.float64)
    ours = output_and_gradients(chunkwise, leaves(8192, torch.float32, extreme))
    truth = output_and_gradients(by_chunks, leaves(8192, torch.float64, extreme))
    for found, expected in zip(ours, truth, strict=True):
        assert bool(torch.isfinite(found).all())
        assert relative_error(found, expected) < 1e-5


def test_autocast_does_not_reach_the_states() -> None:
    inputs = leaves(130, torch.float32)
    plain = output_and_gradients(chunkwise, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        o = chunkwise(*inputs)
    assert o.dtype == torch.float32
    assert o.detach().equal(plain[0])


def test_memory_kept_for_the_backward_pass_grows_linearly() -> None:
    def kept(length: int) -> int:
        sizes: list[int] = []

        def pack(x: Tensor) -> Tensor:
            sizes.append(x.numel())
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            chunkwise(*leaves(length, torch.float32))
        return sum(sizes)

    assert kept(4096) <= 4 * kept(1024)
