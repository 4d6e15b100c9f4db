"""Softmax attention over the last W tokens and a few sinks, linear attention over all the others.

    B batch    T tokens    Hq query heads    H key/value heads    G = Hq / H
    K features    d key dim    V value dim    W window    S sinks    C tokens of one chunk

For the token at position n, with q already scaled by 1 / sqrt(d):

    near = {n - W + 1, ..., n} and the sinks {0, ..., S - 1}; far = the other earlier positions
    w_j = e^(q·k_j) where near, e^mix_n γ^(n-W-j) φ(q)·φ(k_j) where far
    o_n = sum_j w_j v_j / sum_j w_j

One normalizer for both, as in LoLCATs: how much the far tokens matter is decided for every query,
and without far tokens this is softmax attention exactly. `mix` is the logarithm of the far tokens'
scale. Far tokens go through the same recurrence as everywhere, W tokens late.

The cache of a sequence, [2, S + W + 1, d], holds keys and values as the parent has them (rotated):
position p < S in slot p, and any position p in slot S + p mod (W + 1). Its size never changes. A
token overwrites the one before the one that leaves the window with it, which nothing reads.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from dijiang_runtime.ops import torch_ops, training
from dijiang_runtime.ops.linear import Tiles, row_tiles
from dijiang_runtime.ops.near import attend_near, combine


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowInputs:
    """What attention needs to know of some tokens. Leading dimensions are [N], or [B, T]."""

    q: Tensor
    """Scaled queries. [..., Hq, d]."""
    k: Tensor
    """[..., H, d]."""
    v: Tensor
    """[..., H, d]."""
    phi_q: Tensor
    """[..., Hq, K]."""
    mix: Tensor
    """Log of the scale of the linear part. [..., Hq]."""
    log_decay: Tensor
    """At most 0. [H]."""
    features: Callable[[Tensor, Tiles | None], Tensor]
    """φ of keys [N, H, d], in tiles or at once: [N, H, K]."""
    window: int
    sinks: int

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same with `change` applied to everything that has the leading dimensions."""
        return dataclasses.replace(
            self,
            q=change(self.q),
            k=change(self.k),
            v=change(self.v),
            phi_q=change(self.phi_q),
            mix=change(self.mix),
        )

    def rows(self, rows: slice) -> Self:
        return self.map(lambda x: x[rows])


def whole(x: WindowInputs, *, chunk_size: int = 64) -> Tensor:
    """Attend over whole sequences: training and evaluation. Differentiable; linear memory.

    Args:
        x: Leading dimensions [B, T].
        chunk_size: Tokens handled at once. Changes the speed, not the result.

    Returns:
        The outputs [B, T, Hq, d].
    """
    (batch, length), (heads, dim) = x.q.shape[:2], x.k.shape[2:]
    start = torch.zeros(batch, dtype=torch.int64, device=x.q.device)
    late = min(x.window, length)

    def far(rows: Tensor) -> Tensor:
        """Of W tokens ago; 0 where that is a sink or before the beginning. [B, T, H, n]."""
        kept = F.pad(rows[:, x.sinks : length - late], (0, 0, 0, 0, x.sinks, 0))
        return F.pad(kept[:, : length - late], (0, 0, 0, 0, late, 0))

    phi = x.features(x.k.flatten(0, 1), None).unflatten(0, (batch, length))
    linear = training.chunkwise(
        x.phi_q, far(phi), far(with_ones(x.v)), x.log_decay, chunk_size=chunk_size
    )
    new = torch.stack([x.k, x.v], dim=3).permute(0, 2, 3, 1, 4)  # [B, H, 2, T, d]
    pinned = _sinks_after(new.new_zeros(batch, heads, 2, x.sinks, dim), new, start)
    recent = F.pad(new, (0, 0, x.window, 0))
    return attend_near(x.q, x.mix, recent, pinned, start, linear, chunk_size)


def chunk(
    x: WindowInputs, state: Tensor, cache: Tensor, start: Tensor, *, chunk_size: int = 64
) -> tuple[Tensor, Tensor, Tensor]:
    """Attend over a prompt, or the next part of one.

    Args:
        x: Leading dimensions [B, T].
        state: Of the linear part, the last value column for the normalizer. [B, H, K, d + 1].
        cache: Keys and values of the sinks and the last W + 1 tokens. [B, H, 2, S + W + 1, d].
        start: Position of the first token, negative by the number of rows that are padding.
            Shape [B], int64.
        chunk_size: Tokens handled at once. Changes the speed, not the result.

    Returns:
        The outputs [B, T, Hq, d], and state and cache after the last token.
    """
    length, window, sinks = x.q.shape[1], x.window, x.sinks
    ring = cache.shape[3] - sinks
    new = torch.stack([x.k, x.v], dim=3).permute(0, 2, 3, 1, 4)  # [B, H, 2, T, d]
    # Positions start - W, ..., start + T - 1, in order.
    before = start[:, None] + torch.arange(-window, 0, device=start.device)
    recent = torch.cat([_pick(cache, sinks + before % ring), new], dim=3)
    pinned = _sinks_after(cache[..., :sinks, :], new, start)

    is_far = start[:, None] + torch.arange(length, device=start.device) - window >= sinks
    far = recent[:, :, :, :length].permute(2, 0, 3, 1, 4)  # [2, B, T, H, d]
    phi = x.features(far[0].flatten(0, 1), None).unflatten(0, far.shape[1:3])
    linear, state = torch_ops.chunk(
        x.phi_q, phi * is_far[..., None, None], with_ones(far[1]), x.log_decay, state
    )
    o = attend_near(x.q, x.mix, recent, pinned, start, linear, chunk_size)

    last = start[:, None] + length - 1
    newest = _held(last, ring)
    return o, state, torch.cat([pinned, _pick(recent, newest - start[:, None] + window)], dim=3)


def _held(last: Tensor, ring: int) -> Tensor:
    """The position in each slot of the ring after the positions `last` [B, 1]. [B, ring]."""
    return last - (last - torch.arange(ring, device=last.device)) % ring


def _pick(cache: Tensor, index: Tensor) -> Tensor:
    """Entries `index` [B, n] of a cache [B, H, 2, S, d]."""
    shape = (*cache.shape[:3], index.shape[1], cache.shape[4])
    return cache.gather(3, index[:, None, None, :, None].expand(shape))


def _sinks_after(pinned: Tensor, new: Tensor, start: Tensor) -> Tensor:
    """The sinks [B, H, 2, S, d], those among the new tokens taken in."""
    column = torch.arange(pinned.shape[3], device=start.device) - start[:, None]  # [B, S]
    is_new = (column >= 0) & (column < new.shape[3])
    taken = _pick(new, column.clamp(0, new.shape[3] - 1))
    return torch.where(is_new[:, None, None, :, None], taken, pinned)


def step(
    x: WindowInputs,
    positions: Tensor,
    caches: Tensor,
    source: Tensor,
    target: Tensor,
    linear_step: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """Attend for one token of every row, its state and cache named by index.

    Args:
        x: Leading dimension [B].
        positions: Of the tokens. [B], int64.
        caches: All caches of a layer. Shape [rows, H, 2, S + W + 1, d], written in place.
        source: The row of `caches` with the cache before this token. Shape [B], int64.
        target: The row that receives the one after it. Shape [B], int64.
        linear_step: Given φ(q), φ(k) and values with ones, takes the linear part's step.

    Returns:
        The outputs, shape [B, Hq, d].
    """
    heads, window, sinks = x.k.shape[1], x.window, x.sinks
    cache = caches[source]  # [B, H, 2, S + W + 1, d], a copy
    ring = cache.shape[3] - sinks
    rows = torch.arange(len(source), device=source.device)
    slot = sinks + positions % ring
    old = cache[rows, :, :, sinks + (positions - window) % ring]  # [B, H, 2, d]
    is_far = positions - window >= sinks
    phi = _features_of_rows(x, old[:, :, 0]) * is_far[:, None, None]
    linear = linear_step(x.phi_q, phi, with_ones(old[:, :, 1])).unflatten(1, (heads, -1))

    new = torch.stack([x.k, x.v], dim=2)
    cache[rows, :, :, slot] = new
    # Not a sink: written once more where it stands already.
    cache[rows, :, :, torch.where(positions < sinks, positions, slot)] = new
    caches[target] = cache

    leaving = positions[:, None] - window
    pinned, held = torch.arange(sinks, device=source.device), _held(positions[:, None], ring)
    is_seen = torch.cat([pinned <= leaving, (held > leaving) & (held >= 0)], dim=1)
    q = x.q.unflatten(1, (heads, -1))  # [B, H, G, d]
    keys, values = cache[:, :, None, 0], cache[:, :, 1]
    scores = (q.unsqueeze(-2) * keys).sum(dim=-1)
    scores = scores.masked_fill(~is_seen[:, None, None], float("-inf"))
    mix = x.mix.unflatten(1, (heads, -1)).unsqueeze(-1)
    return combine(scores, values, linear, mix, _weighted_sum).flatten(1, 2)


def _features_of_rows(x: WindowInputs, keys: Tensor) -> Tensor:
    """φ of unrelated keys [B, H, d], whose bits do not depend on their number."""
    tiles = row_tiles(len(keys))
    return x.features(F.pad(keys, (0, 0, 0, 0, 0, sum(tiles) - len(keys))), tiles)[: len(keys)]


def _weighted_sum(weights: Tensor, values: Tensor) -> Tensor:
    # Sums, not a matrix product: see `torch_ops.step`.
    return (weights.unsqueeze(-1) * values.unsqueeze(-3)).sum(dim=-2)


def with_ones(v: Tensor) -> Tensor:
    """Values with a column of ones, whose state is the accumulated mass."""
    return torch.cat([v, v.new_ones(*v.shape[:-1], 1)], dim=-1)
