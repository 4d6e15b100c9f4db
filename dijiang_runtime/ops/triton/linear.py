"""Matrix products in tiles whose shape does not depend on the number of rows.

N rows    K inputs    M outputs

cuBLAS chooses its kernel, and with it the order of a sum, by the number of rows. Here a row's sum
runs over the inputs in one order, in tiles of one shape. There are two shapes, for rows that
decode and for rows of prompts; a row of one kind never meets the other.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from dijiang_runtime.ops.triton.shared import dot, silu

Activation = Literal["none", "gelu", "gelu_tanh", "relu", "silu"]


@dataclass(frozen=True, slots=True)
class Tile:
    """The shape of one program's work. Unmeasured: chosen by what registers and caches hold."""

    rows: int
    outputs: int
    inputs: int
    warps: int
    stages: int


def _decode_tile(outputs: int) -> Tile:
    """Few rows: what counts is that enough programs read weights at the same time.

    Depends on the matrix alone, never on the number of rows.
    """
    if outputs >= 8192:
        return Tile(rows=64, outputs=64, inputs=64, warps=4, stages=5)
    if outputs >= 4096:
        return Tile(rows=64, outputs=32, inputs=128, warps=4, stages=3)
    return Tile(rows=64, outputs=16, inputs=128, warps=4, stages=4)


# All tiles fit into the 99 KiB of shared memory that the smallest of these devices has.
_PROMPT_TILE = Tile(rows=128, outputs=128, inputs=64, warps=8, stages=3)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    is_prompt: bool,
    activation: Activation = "none",
    gated: bool = False,
    residual: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Return residual + activation(x weightᵀ + bias).

    Args:
        x: Shape [N, K]; converted to the weight's dtype as it is read.
        weight: Shape [M, K], or [2 M, K] with `gated`, the gate's rows first.
        bias: As many as the weight has rows, or None.
        is_prompt: Whether the rows are of prompts; see above.
        activation: Of the product, bias included.
        gated: activation(gate) * up, as in SwiGLU.
        residual: Shape [N, M], added last.
        out_dtype: By default that of the weight.
    """
    num_rows, inputs = x.shape
    outputs = weight.shape[0] // (2 if gated else 1)
    out = x.new_empty(num_rows, outputs, dtype=out_dtype or weight.dtype)
    if num_rows == 0:
        return out
    tile = _PROMPT_TILE if is_prompt else _decode_tile(outputs)
    # Four bytes an input: half as many at once. A second matrix: half as many outputs.
    block_inputs = tile.inputs // (2 if weight.dtype == torch.float32 else 1)
    block_outputs = max(16, tile.outputs // 2) if gated else tile.outputs
    row_blocks = triton.cdiv(num_rows, tile.rows)
    # Neighbouring programs share a block of weights, so that it is read from memory once.
    grid = (row_blocks * triton.cdiv(outputs, block_outputs),)
    _linear[grid](
        x,
        weight,
        bias,
        residual,
        out,
        num_rows,
        outputs,
        row_blocks,
        x.stride(0),
        K=inputs,
        ACTIVATION=activation,
        GATED=gated,
        BLOCK_N=tile.rows,
        BLOCK_M=block_outputs,
        BLOCK_K=block_inputs,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return out


@triton.jit(do_not_specialize=["num_rows", "row_blocks"])
def _linear(
    x,
    weight,
    bias,
    residual,
    out,
    num_rows,
    outputs,
    row_blocks,
    x_stride,
    K: tl.constexpr,
    ACTIVATION: tl.constexpr,
    GATED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    program = tl.program_id(0)
    rows = (program % row_blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = (program // row_blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    inputs = tl.arange(0, BLOCK_K)
    is_row, is_column = rows < num_rows, columns < outputs
    x_at = x + rows.to(tl.int64)[:, None] * x_stride + inputs[None, :]
    weight_at = weight + columns.to(tl.int64)[None, :] * K + inputs[:, None]
    second = weight_at + outputs.to(tl.int64) * K
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    acc_up = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for start in range(0, K, BLOCK_K):
        is_input = start + inputs < K
        a = tl.load(x_at + start, mask=is_row[:, None] & is_input[None, :], other=0.0)
        a = a.to(weight.dtype.element_ty)
        is_weight = is_input[:, None] & is_column[None, :]
        acc = dot(a, tl.load(weight_at + start, mask=is_weight, other=0.0), acc)
        if GATED:
            acc_up = dot(a, tl.load(second + start, mask=is_weight, other=0.0), acc_up)
    if bias is not None:
        acc += tl.load(bias + columns, mask=is_column, other=0.0).to(tl.float32)[None, :]
        if GATED:
            up = tl.load(bias + outputs + columns, mask=is_column, other=0.0)
            acc_up += up.to(tl.float32)[None, :]
    y = _activate(acc, ACTIVATION)
    if GATED:
        y = y * acc_up
    at = rows.to(tl.int64)[:, None] * outputs + columns[None, :]
    is_output = is_row[:, None] & is_column[None, :]
    if residual is not None:
        y += tl.load(residual + at, mask=is_output, other=0.0).to(tl.float32)
    tl.store(out + at, y.to(out.dtype.element_ty), mask=is_output)


@triton.jit
def _activate(x, ACTIVATION: tl.constexpr):
    if ACTIVATION == "gelu":
        x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        inner = 0.7978845608028654 * (x + 0.044715 * x * x * x)
        # tanh by way of the sigmoid, which does not overflow.
        x = x / (1.0 + tl.exp(-2.0 * inner))
    elif ACTIVATION == "relu":
        # Not a maximum: that would turn a NaN into 0.
        x = tl.where(x < 0.0, 0.0, x)
    elif ACTIVATION == "silu":
        x = silu(x)
    return x
