"""A head from its projection to its features: norm, rotation, P, and the feature map.

Hq query heads    H key/value heads    G = Hq / H    d head dim    r columns of P
m features: r, or 2 r with a negated half    P positions of decay tables
"""

from dataclasses import dataclass
from typing import Literal

import triton
import triton.language as tl
from torch import Tensor

from dijiang_runtime.ops.triton.shared import dot


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """The attention of one layer, as the kernels need to know it. Tensors are float32."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    feature_map: Literal["softmax", "weighted_exp"]
    negated_half: bool
    has_normalizer: bool
    """Divide by the accumulated feature mass, the last column of the state."""
    rotary_dim: int
    query_scale: float
    projection: Tensor
    """[H, d, r], or [d, r] for all heads."""
    feature_weight: Tensor | None
    """D of `weighted_exp`: [H, m], or [m]."""
    norms: tuple[Tensor, Tensor] | None
    """Weights of the RMS norms of queries and keys, [d] each."""
    norm_eps: float
    log_decay: Tensor
    """[H], or [P, H] by position."""
    table_scales: tuple[Tensor, Tensor] | None
    """What decay tables multiply queries and keys by: [P, H] each, with `log_decay` [P, H]."""

    @property
    def group(self) -> int:
        return self.num_heads // self.num_kv_heads

    @property
    def columns(self) -> int:
        return self.projection.shape[-1]

    @property
    def halves(self) -> int:
        return 2 if self.negated_half else 1

    @property
    def query_width(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def key_width(self) -> int:
        return self.num_kv_heads * self.head_dim

    @property
    def key_offset(self) -> int:
        """Where keys begin in a row of q, k, v and gate, side by side."""
        return self.query_width

    @property
    def value_offset(self) -> int:
        return self.query_width + self.key_width

    @property
    def gate_offset(self) -> int:
        return self.query_width + 2 * self.key_width

    def constants(self) -> dict[str, object]:
        """What `project` and `feature_half` are compiled for."""
        return {
            "G": self.group,
            "HEAD_DIM": self.head_dim,
            "COLUMNS": self.columns,
            "HALVES": self.halves,
            "IS_SOFTMAX": self.feature_map == "softmax",
            "ROTARY_HALF": self.rotary_dim // 2,
            "BLOCK_HEAD": triton.next_power_of_2(self.head_dim),
            "BLOCK_R": triton.next_power_of_2(self.columns),
        }

    @property
    def projection_stride(self) -> int:
        """Elements from one key/value head's P to the next one's."""
        return self.projection.stride(0) if self.projection.dim() == 3 else 0

    @property
    def weight_stride(self) -> int:
        weight = self.feature_weight
        return weight.stride(0) if weight is not None and weight.dim() == 2 else 0


@triton.jit
def project(
    x,
    heads,
    tokens,
    is_valid,
    projection,
    norm_weight,
    cos,
    sin,
    scale,
    eps,
    HEAD_DIM: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROTARY_HALF: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_HEAD: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BY_DOT: tl.constexpr,
):
    """scale * rotate(norm(x)) P of some heads, [BLOCK_ROWS, BLOCK_R], 0 beyond the columns.

    `heads` is where each begins, in elements from x; `tokens` its row of cos and sin.
    """
    if norm_weight is not None:
        whole = tl.arange(0, BLOCK_HEAD)
        mask = is_valid[:, None] & (whole < HEAD_DIM)[None, :]
        head = tl.load(x + heads[:, None] + whole[None, :], mask=mask, other=0.0).to(tl.float32)
        factor = scale * tl.rsqrt(tl.sum(head * head, axis=1) / HEAD_DIM + eps)
    else:
        factor = scale + tl.zeros([BLOCK_ROWS], tl.float32)
    columns = tl.arange(0, BLOCK_R)
    acc = tl.zeros([BLOCK_ROWS, BLOCK_R], tl.float32)
    for start in range(0, HEAD_DIM, BLOCK_D):
        dims = start + tl.arange(0, BLOCK_D)
        is_dim = dims < HEAD_DIM
        value = _normed(x, heads, dims, is_valid[:, None] & is_dim[None, :], norm_weight)
        if ROTARY_HALF > 0:
            is_first = dims < ROTARY_HALF
            is_rotated = is_valid[:, None] & (is_dim & (dims < 2 * ROTARY_HALF))[None, :]
            partner = tl.where(is_first, dims + ROTARY_HALF, dims - ROTARY_HALF)
            angle = tl.where(is_first, dims, dims - ROTARY_HALF)
            other = _normed(x, heads, partner, is_rotated, norm_weight)
            at = tokens[:, None] * ROTARY_HALF + angle[None, :]
            sign = tl.where(is_first, -1.0, 1.0)[None, :]
            value = value * tl.load(cos + at, mask=is_rotated, other=1.0)
            value += sign * other * tl.load(sin + at, mask=is_rotated, other=0.0)
        at = dims[:, None] * COLUMNS + columns[None, :]
        is_weight = is_dim[:, None] & (columns < COLUMNS)[None, :]
        weight = tl.load(projection + at, mask=is_weight, other=0.0)
        if BY_DOT:
            acc = dot(value, weight, acc)
        else:
            acc += tl.sum(value[:, :, None] * weight[None, :, :], axis=1)
    return acc * factor[:, None]


@triton.jit
def _normed(x, heads, dims, mask, norm_weight):
    """x at `dims` of each head, times the norm's weight there. [rows, dims]"""
    value = tl.load(x + heads[:, None] + dims[None, :], mask=mask, other=0.0).to(tl.float32)
    if norm_weight is not None:
        any_row = tl.max(mask.to(tl.int32), axis=0) > 0
        value *= tl.load(norm_weight + dims, mask=any_row, other=0.0)[None, :]
    return value


@triton.jit
def feature_half(
    projected,
    weight,
    sign,
    COLUMNS: tl.constexpr,
    IS_SOFTMAX: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """The features of sign * x P, [rows, BLOCK_R], 0 beyond the columns.

    `weight` points to D's entries for this head and half, where the map has a D.
    """
    columns = tl.arange(0, BLOCK_R)
    is_column = columns < COLUMNS
    if IS_SOFTMAX:
        scores = tl.where(is_column[None, :], sign * projected, float("-inf"))
        top = tl.max(scores, axis=1)
        e = tl.exp(scores - top[:, None])
        phi = e / tl.sum(e, axis=1)[:, None]
    else:
        d = tl.load(weight + columns, mask=is_column, other=0.0)
        phi = d[None, :] * tl.exp(sign * projected)
    return phi
