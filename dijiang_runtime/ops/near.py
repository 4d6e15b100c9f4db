"""Softmax attention over the near tokens of `windowed`: the last W, and the sinks.

B batch    T tokens    Hq query heads    H key/value heads    G = Hq / H
d head dim    W window    S sinks    C tokens of one chunk    n chunks
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# The mass is a sum of products of positive features; this only guards against underflow.
_MIN_MASS = 1e-30


def attend_near(
    q: Tensor,
    mix: Tensor,
    recent: Tensor,
    pinned: Tensor,
    start: Tensor,
    linear: Tensor,
    chunk_size: int,
) -> Tensor:
    """Attend to what is near, in bands, and add what is far.

    Args:
        q: Scaled queries. [B, T, Hq, d].
        mix: Log of the scale of the linear part. [B, T, Hq].
        recent: Keys and values of the W tokens before the first one and of all T, in order.
            Shape [B, H, 2, W + T, d].
        pinned: Those of the sinks. Shape [B, H, 2, S, d].
        start: Position of the first token, negative by the number of rows that are padding.
            Shape [B], int64.
        linear: Sums of the linear part, the last column its mass. [B, T, Hq, d + 1].
        chunk_size: Tokens handled at once. Changes the speed, not the result.

    Returns:
        The outputs [B, T, Hq, d].
    """
    length, heads, sinks = q.shape[1], recent.shape[1], pinned.shape[3]
    window, size = recent.shape[3] - length, min(chunk_size, length)
    count = -(-length // size)
    rest = count * size - length

    def by_chunk(rows: Tensor) -> Tensor:
        """[B, T, Hq, ...] to [B, n, H, G * C, ...]."""
        rows = F.pad(rows, (0, 0) * (rows.dim() - 2) + (0, rest))
        rows = rows.unflatten(1, (count, size)).unflatten(3, (heads, -1))
        return rows.permute(0, 1, 3, 4, 2, 5).flatten(3, 4)

    # Column i of a chunk's band is the position W - i before the chunk's first token.
    band = F.pad(recent, (0, 0, 0, rest)).unfold(3, window + size, size)  # [B, H, 2, n, d, W + C]
    keys, values = band.permute(2, 0, 3, 1, 5, 4)  # [B, n, H, W + C, d] each
    ends = pinned.permute(2, 0, 1, 3, 4)[:, :, None].expand(-1, -1, count, -1, -1, -1)
    keys, values = torch.cat([ends[0], keys], dim=3), torch.cat([ends[1], values], dim=3)

    mask = _near_mask(start, count, size, window, sinks)  # [B, n, 1, C, S + W + C]
    scores = by_chunk(q) @ keys.transpose(-1, -2)
    scores = scores.unflatten(3, (-1, size)).masked_fill(~mask[:, :, :, None], float("-inf"))
    o = combine(
        scores.flatten(3, 4),
        values,
        by_chunk(linear),
        by_chunk(mix.unsqueeze(-1)),
        torch.matmul,
    )
    o = o.unflatten(3, (-1, size)).permute(0, 1, 4, 2, 3, 5)  # [B, n, C, H, G, d]
    return o.flatten(3, 4).flatten(1, 2)[:, :length]


def _near_mask(start: Tensor, count: int, size: int, window: int, sinks: int) -> Tensor:
    """Which sinks and which columns of its band a token sees. [B, n, 1, C, S + W + C]."""
    device = start.device
    token = start[:, None] + torch.arange(count * size, device=device)
    token = token.unflatten(1, (count, size))[..., None]  # [B, n, C, 1]
    column = token[:, :, :1] - window + torch.arange(window + size, device=device)
    in_window = (column > token - window) & (column <= token)
    # A row of padding sees itself, so that no row is without any.
    in_window &= (column >= 0) | (column == token)
    pinned = torch.arange(sinks, device=device).expand(*token.shape[:3], sinks)
    return torch.cat([pinned <= token - window, in_window], dim=3).unsqueeze(2)


def combine(
    scores: Tensor,
    values: Tensor,
    linear: Tensor,
    mix: Tensor,
    product: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """(sum e^score v + e^mix linear) / (sum e^score + e^mix mass), whatever their sizes.

    Args:
        scores: [..., R, S], -inf where not seen, with at least one seen in each row.
        values: [..., S, d].
        linear: Sums of the linear part, the last column its mass. [..., R, d + 1].
        mix: [..., R, 1].
    """
    mass = linear[..., -1:]
    # In logs: a mix far above the scores must not turn into a division of 0 by 0.
    far = (mix + mass.clamp(min=_MIN_MASS).log()).masked_fill(mass <= 0, float("-inf"))
    # A mass of -infinity is no empty state, but a broken one: it becomes NaN, as others do.
    far = far + 0.0 * mass
    top = torch.maximum(scores.amax(dim=-1, keepdim=True), far).detach()
    weights, far_weight = (scores - top).exp(), (far - top).exp()
    far_mean = linear[..., :-1] / mass.clamp(min=_MIN_MASS)
    total = weights.sum(dim=-1, keepdim=True) + far_weight
    return (product(weights, values) + far_weight * far_mean) / total
