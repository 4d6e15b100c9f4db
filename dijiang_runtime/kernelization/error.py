"""How far attention with a finite feature map is from softmax attention, by number of features."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dijiang_runtime.kernelization.quasi_monte_carlo import RULES, Frequencies, Rule, frequencies


@dataclass(frozen=True, slots=True)
class KernelError:
    """The error of one rule at one number of features on one set of queries and keys."""

    source: str
    """Where queries and keys come from."""
    rule: Rule
    num_features: int
    mean: float
    """Of the relative error over seeds: |A' - A| / |A|, Frobenius norms of the attention rows."""
    std: float


@dataclass(frozen=True, slots=True)
class QueriesAndKeys:
    """Heads of one kind: q and k [heads, T, d], scaled so that softmax attention is exp(q.k)."""

    source: str
    q: Tensor
    k: Tensor


def synthetic(num_tokens: int, head_dim: int, logit_std: float, *, seed: int) -> QueriesAndKeys:
    """Gaussian queries and keys whose products q.k have this standard deviation. One head."""
    generator = torch.Generator("cpu").manual_seed(seed)
    shape = (2, 1, num_tokens, head_dim)
    q, k = torch.randn(shape, generator=generator, dtype=torch.float64)
    scale = (logit_std / head_dim**0.5) ** 0.5
    return QueriesAndKeys(f"synthetic, logit std {logit_std:g}", scale * q, scale * k)


def kernel_errors(
    data: QueriesAndKeys,
    feature_counts: Sequence[int],
    *,
    num_seeds: int,
    progress: Callable[[], None] | None = None,
) -> Iterator[KernelError]:
    """Yield the error of every rule at every number of features, over seeds and heads."""
    exact = _softmax_attention(data.q @ data.k.transpose(-1, -2))
    size = exact.flatten(1).norm(dim=1)
    for num_features in feature_counts:
        for rule in RULES:
            errors = []
            for seed in range(num_seeds):
                drawn = frequencies(rule, num_features, data.q.shape[-1], seed=seed)
                difference = approximate_attention(data.q, data.k, drawn) - exact
                errors.append((difference.flatten(1).norm(dim=1) / size).mean())
            over_seeds = torch.stack(errors)
            std = float(over_seeds.std(correction=0))
            yield KernelError(data.source, rule, num_features, float(over_seeds.mean()), std)
            if progress is not None:
                progress()


def uniform_error(data: QueriesAndKeys) -> float:
    """The error of attending to every earlier token alike: what knows nothing of the inputs."""
    scores = data.q @ data.k.transpose(-1, -2)
    exact, uniform = _softmax_attention(scores), _softmax_attention(torch.zeros_like(scores))
    error = (uniform - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)
    return float(error.mean())


def approximate_attention(q: Tensor, k: Tensor, drawn: Frequencies) -> Tensor:
    """Causal attention rows [heads, T, T] by positive features, each row divided by its sum."""
    log_q = q @ drawn.w.T + drawn.weights.log()
    log_k = k @ drawn.w.T - k.square().sum(-1, keepdim=True) / 2
    # A factor of a query's row cancels, and so does one that all keys share.
    phi_q = torch.exp(log_q - log_q.amax(-1, keepdim=True))
    phi_k = torch.exp(log_k - log_k.amax((-1, -2), keepdim=True))
    rows = (phi_q @ phi_k.transpose(-1, -2)).tril()
    return rows / rows.sum(-1, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny)


def _softmax_attention(scores: Tensor) -> Tensor:
    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return scores.masked_fill(future, float("-inf")).softmax(-1)
