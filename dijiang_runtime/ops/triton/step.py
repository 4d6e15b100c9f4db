"""One token of every row, in one launch.

N rows    Hq query heads    H key/value heads    d head dim    K features    V value dim
"""

import torch
import triton
from torch import Tensor

from dijiang_runtime.ops.triton.heads import Heads
from dijiang_runtime.ops.triton.step_kernel import step_kernel

_TILE_ELEMENTS = 4096
"""Elements of the state that a program holds in registers at once."""


def step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    states: Tensor,
    source: Tensor,
    target: Tensor,
) -> Tensor:
    """Attend for one token of every row. Arguments as in `torch_ops.step`; q and k are features."""
    rows, heads, key_dim = k.shape
    value_dim, group = v.shape[2], q.shape[1] // heads
    q, k, v, log_decay = (x.contiguous() for x in (q, k, v, log_decay))
    out = q.new_empty(rows, q.shape[1], value_dim)
    finite = torch.empty(rows, heads, dtype=torch.int32, device=q.device)
    constants: dict[str, object] = {
        "G": group,
        "HEAD_DIM": key_dim,
        "COLUMNS": key_dim,
        "HALVES": 1,
        "IS_SOFTMAX": False,
        "ROTARY_HALF": 0,
        "BLOCK_HEAD": triton.next_power_of_2(key_dim),
        "BLOCK_R": triton.next_power_of_2(key_dim),
    }
    _launch(
        (rows, heads),
        constants,
        (q, k, v, None, None, None, None, None, None, None, None, log_decay, None, None),
        (states, source, target, out, finite),
        (q.stride(0), k.stride(0), v.stride(0), 0, 1.0, 0.0, 0, 0),
        IS_GIVEN=True,
        DECAY="head" if log_decay.dim() == 1 else "row",
        VALUES=value_dim,
        NORMALIZER=False,
    )
    return out


def decode(
    rows: Tensor,
    heads: Heads,
    angles: tuple[Tensor, Tensor] | None,
    positions: Tensor,
    states: Tensor,
    source: Tensor,
    target: Tensor,
    *,
    gated: bool,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Attend for one token of every row, from its projections to its gated read-out.

    Args:
        rows: q, k, v and, with `gated`, the gate before its SiLU, side by side. [N, width].
        heads: The layer's attention.
        angles: Cosine and sine, [N, 1, rotary_dim / 2] each, float32, or None.
        positions: [N], int64.
        states: Of the layer. Shape [rows, H, K, V], float32; `target` rows are written.
        source, target: As in `torch_ops.step`. [N], int64.
        gated: Whether to multiply by the gate.
        out_dtype: Of the read-out.

    Returns:
        The read-out [N, Hq d], and [N, H] int32: 1 where it and so the next state is finite.
    """
    num_rows = len(rows)
    q, k = rows, rows[:, heads.key_offset :]
    v, gate = rows[:, heads.value_offset :], rows[:, heads.gate_offset :] if gated else None
    out = rows.new_empty(num_rows, heads.query_width, dtype=out_dtype)
    finite = torch.empty(num_rows, heads.num_kv_heads, dtype=torch.int32, device=rows.device)
    cos, sin = angles or (None, None)
    norms, scales = heads.norms or (None, None), heads.table_scales or (None, None)
    stride = rows.stride(0)
    _launch(
        (num_rows, heads.num_kv_heads),
        heads.constants(),
        (q, k, v, gate, cos, sin, positions, heads.projection, heads.feature_weight, *norms)
        + (heads.log_decay, *scales),
        (states, source, target, out, finite),
        (stride, stride, stride, stride, heads.query_scale, heads.norm_eps)
        + (heads.projection_stride, heads.weight_stride),
        IS_GIVEN=False,
        DECAY="head" if heads.log_decay.dim() == 1 else "position",
        VALUES=heads.head_dim,
        NORMALIZER=heads.has_normalizer,
    )
    return out, finite


def _launch(
    grid: tuple[int, int],
    constants: dict[str, object],
    inputs: tuple[Tensor | None, ...],
    stores: tuple[Tensor, ...],
    numbers: tuple[float, ...],
    **options: object,
) -> None:
    if grid[0] == 0:
        return
    states = stores[0]
    if not states.is_contiguous() or states.dtype != torch.float32:
        raise ValueError("states must be contiguous float32")
    group, columns = constants["G"], constants["BLOCK_R"]
    assert isinstance(group, int) and isinstance(columns, int)
    step_kernel[grid](
        *inputs,
        *stores,
        *numbers,
        H=grid[1],
        **constants,
        **options,
        BLOCK_G=triton.next_power_of_2(group),
        BLOCK_D=16,
        BLOCK_V=max(16, min(64, _TILE_ELEMENTS // columns)),
        num_warps=4,
    )
