"""Norms, one program for each row. They compute in float32."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dijiang_runtime.ops.triton.shared import silu

Affine = tuple[Tensor, Tensor | None]
"""Weight and bias, [D] each. An RMS norm has no bias."""


def norm(
    x: Tensor, *affines: Affine, eps: float, is_rms: bool, out_dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """Normalise rows [N, D] once, with one or two sets of weights. One result for each."""
    first, second = affines[0], affines[-1]
    outs = tuple(torch.empty_like(x, dtype=out_dtype) for _ in affines)
    if len(x):
        _norm[(len(x),)](
            x,
            *first,
            outs[0],
            *second,
            outs[-1],
            eps,
            SIZE=x.shape[1],
            IS_RMS=is_rms,
            HAS_SECOND=len(affines) > 1,
            BLOCK=triton.next_power_of_2(x.shape[1]),
            num_warps=_warps(x.shape[1]),
        )
    return outs


def group_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    gate: Tensor | None,
    *,
    num_groups: int,
    eps: float,
    out_dtype: torch.dtype,
) -> Tensor:
    """Normalise rows [N, C] in groups of consecutive channels, which may straddle heads.

    `gate`, [N, C] with any stride between its rows, multiplies the result by its SiLU.
    """
    out = torch.empty_like(x, dtype=out_dtype)
    size = x.shape[1] // num_groups
    if len(x):
        _group_norm[(len(x),)](
            x,
            weight,
            bias,
            gate,
            out,
            0 if gate is None else gate.stride(0),
            eps,
            GROUPS=num_groups,
            SIZE=size,
            BLOCK_GROUPS=triton.next_power_of_2(num_groups),
            BLOCK_SIZE=triton.next_power_of_2(size),
            num_warps=_warps(x.shape[1]),
        )
    return out


def _warps(size: int) -> int:
    return 4 if size <= 2048 else 8


@triton.jit
def _norm(
    x,
    weight,
    bias,
    out,
    second_weight,
    second_bias,
    second_out,
    eps,
    SIZE: tl.constexpr,
    IS_RMS: tl.constexpr,
    HAS_SECOND: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.arange(0, BLOCK)
    mask = at < SIZE
    row = tl.program_id(0).to(tl.int64) * SIZE
    value = tl.load(x + row + at, mask=mask, other=0.0).to(tl.float32)
    if not IS_RMS:
        value = tl.where(mask, value - tl.sum(value) / SIZE, 0.0)
    value = value * tl.rsqrt(tl.sum(value * value) / SIZE + eps)
    _scale_and_store(value, weight, bias, out + row, at, mask)
    if HAS_SECOND:
        _scale_and_store(value, second_weight, second_bias, second_out + row, at, mask)


@triton.jit
def _scale_and_store(value, weight, bias, out, at, mask):
    y = value * tl.load(weight + at, mask=mask, other=0.0).to(tl.float32)
    if bias is not None:
        y += tl.load(bias + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + at, y.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _group_norm(
    x,
    weight,
    bias,
    gate,
    out,
    gate_stride,
    eps,
    GROUPS: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK_GROUPS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    group, place = tl.arange(0, BLOCK_GROUPS)[:, None], tl.arange(0, BLOCK_SIZE)[None, :]
    mask = (group < GROUPS) & (place < SIZE)
    at = group * SIZE + place
    row = tl.program_id(0).to(tl.int64)
    value = tl.load(x + row * GROUPS * SIZE + at, mask=mask, other=0.0).to(tl.float32)
    value = tl.where(mask, value - tl.sum(value, axis=1)[:, None] / SIZE, 0.0)
    variance = tl.sum(value * value, axis=1)[:, None] / SIZE
    y = value * tl.rsqrt(variance + eps)
    y = y * tl.load(weight + at, mask=mask, other=0.0).to(tl.float32)
    y += tl.load(bias + at, mask=mask, other=0.0).to(tl.float32)
    if gate is not None:
        y *= silu(tl.load(gate + row * gate_stride + at, mask=mask, other=0.0).to(tl.float32))
    tl.store(out + row * GROUPS * SIZE + at, y.to(out.dtype.element_ty), mask=mask)
