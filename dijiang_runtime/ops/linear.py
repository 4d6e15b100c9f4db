"""Matrix products whose bits do not depend on the batch.

BLAS chooses its kernel and its blocking by the number of rows, so the same row can come out
differently alone and in a batch. It does not look at where in the matrix a row stands. So the
engine lays its rows out in tiles of a fixed size, and every product runs tile by tile.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

ROW_TILE = 16
"""Rows of a tile of decodes, or of the ragged end of a prompt. Padded to this with any rows."""

CHUNK_TILE = 64
"""Rows of a tile that holds one whole chunk of a prompt."""

Tiles = Sequence[int]
"""Tile sizes, in order, that cover the rows of a batch."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, tiles: Tiles | None) -> Tensor:
    """Return x weightᵀ + bias, tile by tile, in the dtype of x.

    Args:
        x: Shape [N, in_features]. Multiplied in the weight's dtype.
        weight: Shape [out_features, in_features].
        bias: Shape [out_features], or None.
        tiles: Sizes that add up to N. None multiplies all rows at once and is differentiable.
    """
    dtype = x.dtype
    x = x.to(weight.dtype)
    if tiles is None:
        return F.linear(x, weight, bias).to(dtype)
    out = torch.empty(x.shape[0], weight.shape[0], dtype=weight.dtype, device=x.device)
    start = 0
    for size in tiles:
        rows = slice(start, start + size)
        if bias is None:
            torch.mm(x[rows], weight.T, out=out[rows])
        else:
            torch.addmm(bias, x[rows], weight.T, out=out[rows])
        start += size
    return out.to(dtype)


def per_head_linear(x: Tensor, weight: Tensor, tiles: Tiles | None) -> Tensor:
    """Multiply every head by its own matrix, tile by tile.

    Args:
        x: Shape [N, H * G, d], heads of a group adjacent.
        weight: Shape [H, d, r], or [d, r] for one matrix that all heads share.
        tiles: As in `linear`.

    Returns:
        Shape [N, H * G, r].
    """
    if tiles is None:
        return _per_head(x, weight)
    parts = [_per_head(rows, weight) for rows in x.split(list(tiles))]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _per_head(x: Tensor, weight: Tensor) -> Tensor:
    if weight.dim() == 2:
        return x @ weight
    heads = weight.shape[0]
    grouped = x.unflatten(1, (heads, -1)).transpose(0, 1).flatten(1, 2)  # [H, N * G, d]
    product = torch.bmm(grouped, weight)  # [H, N * G, r]
    return product.unflatten(1, (x.shape[0], -1)).transpose(0, 1).flatten(1, 2)


def row_tiles(num_rows: int) -> tuple[int, ...]:
    """The tiles that hold `num_rows` unrelated rows, padding included."""
    return (ROW_TILE,) * -(-num_rows // ROW_TILE)


def prompt_tiles(num_tokens: int) -> tuple[int, ...]:
    """The tiles that hold consecutive tokens of one prompt, the first at a chunk boundary."""
    whole, rest = divmod(num_tokens, CHUNK_TILE)
    return (CHUNK_TILE,) * whole + row_tiles(rest)
