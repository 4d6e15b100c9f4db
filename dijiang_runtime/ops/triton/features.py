"""The feature map over the tokens of prompts: blocks of tokens, one head at a time."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dijiang_runtime.ops.triton.heads import Heads, feature_half, project

_ROWS = 64


def features(
    rows: Tensor, heads: Heads, angles: tuple[Tensor, Tensor] | None, positions: Tensor
) -> tuple[Tensor, Tensor]:
    """Return φ(q) [N, Hq, m] and φ(k) [N, H, m], float32.

    Args:
        rows: q, k, v and gate side by side. Shape [N, width].
        heads: The layer's attention.
        angles: Cosine and sine for each token, [N, 1, rotary_dim / 2] each, float32.
        positions: [N], int64.
    """
    num_rows = len(rows)
    count = heads.num_heads + heads.num_kv_heads
    num_features = heads.halves * heads.columns
    out = rows.new_empty(num_rows, count, num_features, dtype=torch.float32)
    cos, sin = angles or (None, None)
    q_norm, k_norm = heads.norms or (None, None)
    q_scale, k_scale = heads.table_scales or (None, None)
    _features[(triton.cdiv(num_rows, _ROWS), count)](
        rows,
        cos,
        sin,
        positions,
        heads.projection,
        heads.feature_weight,
        q_norm,
        k_norm,
        q_scale,
        k_scale,
        out,
        num_rows,
        rows.stride(0),
        heads.query_scale,
        heads.norm_eps,
        heads.projection_stride,
        heads.weight_stride,
        HQ=heads.num_heads,
        **heads.constants(),
        BLOCK_ROWS=_ROWS,
        BLOCK_D=16,
        num_warps=4 if heads.columns <= 64 else 8,
    )
    return out[:, : heads.num_heads], out[:, heads.num_heads :]


@triton.jit(do_not_specialize=["num_rows"])
def _features(
    x,
    cos,
    sin,
    positions,
    projection,
    weight,
    q_norm,
    k_norm,
    q_scale,
    k_scale,
    out,
    num_rows,
    x_stride,
    query_scale,
    eps,
    projection_stride,
    weight_stride,
    HQ: tl.constexpr,
    G: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    COLUMNS: tl.constexpr,
    HALVES: tl.constexpr,
    IS_SOFTMAX: tl.constexpr,
    ROTARY_HALF: tl.constexpr,
    BLOCK_HEAD: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    token = (tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)).to(tl.int64)
    head = tl.program_id(1)
    is_valid = token < num_rows
    # Keys follow the queries, in the row as in the output.
    start = token * x_stride + head * HEAD_DIM
    if head < HQ:
        kv = head // G
        projected = project(
            x, start, token, is_valid, projection + kv * projection_stride, q_norm, cos, sin,
            query_scale, eps, HEAD_DIM, COLUMNS, ROTARY_HALF, BLOCK_ROWS, BLOCK_HEAD, BLOCK_D,
            BLOCK_R, True,
        )  # fmt: skip
        factor = _table_scale(q_scale, positions, token, is_valid, kv, HQ // G, BLOCK_ROWS)
    else:
        kv = head - HQ
        projected = project(
            x, start, token, is_valid, projection + kv * projection_stride, k_norm, cos, sin,
            1.0, eps, HEAD_DIM, COLUMNS, ROTARY_HALF, BLOCK_ROWS, BLOCK_HEAD, BLOCK_D,
            BLOCK_R, True,
        )  # fmt: skip
        factor = _table_scale(k_scale, positions, token, is_valid, kv, HQ // G, BLOCK_ROWS)
    columns = tl.arange(0, BLOCK_R)
    mask = is_valid[:, None] & (columns < COLUMNS)[None, :]
    count: tl.constexpr = HQ + HQ // G
    at = (token * count + head)[:, None] * (HALVES * COLUMNS) + columns[None, :]
    for half in tl.static_range(HALVES):
        of_half = weight
        if weight is not None:
            of_half = weight + kv * weight_stride + half * COLUMNS
        phi = feature_half(projected, of_half, 1.0 - 2.0 * half, COLUMNS, IS_SOFTMAX, BLOCK_R)
        tl.store(out + half * COLUMNS + at, phi * factor[:, None], mask=mask)


@triton.jit
def _table_scale(scale, positions, token, is_valid, kv, H: tl.constexpr, BLOCK_ROWS: tl.constexpr):
    """What trained decay tables multiply each token's features by."""
    factor = tl.full([BLOCK_ROWS], 1.0, tl.float32)
    if scale is not None:
        position = tl.load(positions + token, mask=is_valid, other=0)
        factor = tl.load(scale + position * H + kv, mask=is_valid, other=0.0)
    return factor
