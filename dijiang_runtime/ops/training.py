"""Decayed linear attention over whole sequences, with its gradients worked out by hand.

    B batch    T tokens    Hq query heads    H key/value heads    G = Hq / H
    K features    V value dim    C tokens of one chunk    n = T / C chunks

The same function as `torch_ops.chunk` from an empty state. All chunks of a sequence are computed
at once; only their states follow one another. The backward pass computes the scores again instead
of keeping them, so memory grows linearly with T. Decays are only ever exponentials of something
that is at most 0, in both directions.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def chunkwise(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, *, chunk_size: int = 64
) -> Tensor:
    """Attend over whole sequences. Differentiable once, the decay included.

    Computed in float32, or in float64 if the queries are, also under autocast: what a state sums
    up over thousands of tokens does not survive bfloat16.

    Args:
        q: Feature-mapped queries. Shape [B, T, Hq, K].
        k: Feature-mapped keys. Shape [B, T, H, K]; Hq is a multiple of H.
        v: Values. Shape [B, T, H, V].
        log_decay: Natural log of the decay, at most 0. Shape [H].
        chunk_size: Tokens handled at once. Changes the speed, not the result.

    Returns:
        The outputs, shape [B, T, Hq, V].
    """
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    with torch.autocast(q.device.type, enabled=False):
        inputs = (x.to(dtype) for x in (q, k, v, log_decay))
        return _Chunkwise.apply(*inputs, min(chunk_size, q.shape[1]))


class _Chunkwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, chunk_size: int
    ) -> Tensor:
        decays = _Decays.of(log_decay, chunk_size)
        heads, length = k.shape[2], q.shape[1]
        qc, kc, vc = (_by_chunk(x, heads, chunk_size) for x in (q, k, v))
        states = _scan((kc * decays.to_end).transpose(-1, -2) @ vc, decays.chunk)
        o = _scores(qc, kc, decays) @ vc
        o += _scaled(qc, decays.from_start) @ states
        ctx.save_for_backward(q, k, v, log_decay, states)
        ctx.chunk_size = chunk_size
        return _by_token(o, chunk_size, length)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, log_decay, states = ctx.saved_tensors
        size, (length, heads) = ctx.chunk_size, k.shape[1:3]
        decays = _Decays.of(log_decay, size)
        qc, kc, vc, do = (_by_chunk(x, heads, size) for x in (q, k, v, grad))

        # Between chunks: queries read the state before their chunk, keys write the one after it.
        from_states = _scaled(do @ states.transpose(-1, -2), decays.from_start)
        dstates = _scan(_scaled(qc, decays.from_start).transpose(-1, -2) @ do, decays.chunk, -1)
        to_states = (vc @ dstates.transpose(-1, -2)) * decays.to_end
        dv = (kc * decays.to_end) @ dstates

        # Within a chunk, the scores once more.
        dscores = _weighted(do @ vc.transpose(-1, -2), decays)
        dq = dscores @ kc + from_states
        dk = dscores.transpose(-1, -2) @ qc + to_states
        dscores *= qc @ kc.transpose(-1, -2)
        dlog_decay = _decay_gradient(qc, kc, from_states, to_states, states, dstates, decays)
        dlog_decay += (dscores.sum((0, 1)).unflatten(1, (-1, size)).sum(1) * decays.lag).sum((1, 2))
        dv += _scores(qc, kc, decays).transpose(-1, -2) @ do
        return (*(_by_token(x, size, length) for x in (dq, dk, dv)), dlog_decay, None)


@dataclass(frozen=True, slots=True)
class _Decays:
    """What passes between two places of a chunk, for every head."""

    weights: Tensor
    """From token j to token i, 0 where j comes after i. [H, C, C]."""
    from_start: Tensor
    """From before the chunk to its token i. [H, C, 1]."""
    to_end: Tensor
    """From token j to the last. [H, C, 1]."""
    chunk: Tensor
    """Over a whole chunk. [H, 1, 1]."""
    lag: Tensor
    """i - j. [C, C]."""

    @classmethod
    def of(cls, log_decay: Tensor, size: int) -> "_Decays":
        place = torch.arange(size, device=log_decay.device, dtype=log_decay.dtype)
        lag = place[:, None] - place[None, :]
        g = log_decay[:, None, None]
        return cls(
            weights=(g * lag).masked_fill(lag < 0, float("-inf")).exp(),
            from_start=(g * (place[:, None] + 1)).exp(),
            to_end=(g * (size - 1 - place[:, None])).exp(),
            chunk=(g * size).exp(),
            lag=lag,
        )


def _by_chunk(x: Tensor, heads: int, size: int) -> Tensor:
    """[B, T, G * H, d] to [B, n, H, G * C, d], the last chunk filled up with zeros."""
    rest = -x.shape[1] % size
    x = F.pad(x, (0, 0, 0, 0, 0, rest)) if rest else x
    x = x.unflatten(1, (-1, size)).unflatten(3, (heads, -1))  # [B, n, C, H, G, d]
    return x.permute(0, 1, 3, 4, 2, 5).flatten(3, 4)


def _by_token(x: Tensor, size: int, length: int) -> Tensor:
    """[B, n, H, G * C, d] to [B, T, H * G, d]."""
    x = x.unflatten(3, (-1, size)).permute(0, 1, 4, 2, 3, 5)
    return x.flatten(3, 4).flatten(1, 2)[:, :length]


def _weighted(scores: Tensor, decays: _Decays) -> Tensor:
    """Scores [B, n, H, G * C, C] times the decay of their distance, in place."""
    scores.unflatten(3, (-1, scores.shape[4])).mul_(decays.weights[:, None])
    return scores


def _scores(q: Tensor, k: Tensor, decays: _Decays) -> Tensor:
    return _weighted(q @ k.transpose(-1, -2), decays)


def _scaled(x: Tensor, factor: Tensor) -> Tensor:
    """Rows [B, n, H, G * C, d] times a factor [H, C, 1] for their place in the chunk."""
    return (x.unflatten(3, (-1, factor.shape[1])) * factor[:, None]).flatten(3, 4)


def _scan(added: Tensor, decay: Tensor, direction: int = 1) -> Tensor:
    """What chunks [B, n, H, K, V] add, summed up with decay, each without its own.

    Direction 1 is the state before every chunk; -1 the gradient of the state after it.
    """
    out = torch.empty_like(added)
    carried = torch.zeros_like(added[:, 0])
    for index in range(added.shape[1])[::direction]:
        out[:, index] = carried
        carried = torch.addcmul(added[:, index], decay, carried)
    return out


def _decay_gradient(
    q: Tensor,
    k: Tensor,
    from_states: Tensor,
    to_states: Tensor,
    states: Tensor,
    dstates: Tensor,
    decays: _Decays,
) -> Tensor:
    """The part of the log decay's gradient [H] that goes through the states."""
    size = decays.lag.shape[0]
    place = torch.arange(size, device=q.device, dtype=q.dtype)
    read = (q * from_states).sum((0, 1, 4)).unflatten(1, (-1, size)).sum(1) @ (place + 1)
    written = (k * to_states).sum((0, 1, 4)) @ (size - 1 - place)
    kept = (states * dstates).sum((0, 1)) * decays.chunk * size
    return read + written + kept.sum((1, 2))
