"""Parts of several prompts in one launch, each from its own state.

N tokens of all parts    n parts    Hq query heads    H key/value heads    V value dim
"""

import torch
import triton
from torch import Tensor

from dijiang_runtime.ops.triton.chunk_kernel import chunk_kernel
from dijiang_runtime.ops.triton.features import features
from dijiang_runtime.ops.triton.heads import Heads

_VALUES = 32
"""Columns of the state that one program carries."""

_WIDE = 128
"""Features that are multiplied at once; more are two parts. From so many on, chunks are shorter."""


def chunk(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Attend over a prompt, or the next part of one. Arguments as in `torch_ops.chunk`."""
    batch, length = q.shape[:2]
    device = q.device
    first = torch.arange(batch, device=device)
    lengths = torch.full_like(first, length)
    segments = torch.stack([first * length, lengths, first, first + batch], dim=1)
    states = torch.cat([state, torch.empty_like(state)]).contiguous()
    rows = v.flatten(0, 1).flatten(1).contiguous()
    out = q.new_empty(batch * length, q.shape[2], v.shape[3])
    _launch(
        q.flatten(0, 1).contiguous(),
        k.flatten(0, 1).contiguous(),
        rows,
        None,
        log_decay.contiguous(),
        torch.arange(length, device=device).repeat(batch),
        states,
        segments,
        out,
        values=v.shape[3],
        has_normalizer=False,
    )
    return out.unflatten(0, (batch, length)), states[batch:]


def prefill(
    rows: Tensor,
    heads: Heads,
    angles: tuple[Tensor, Tensor] | None,
    positions: Tensor,
    states: Tensor,
    segments: Tensor,
    *,
    gated: bool,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Attend over parts of prompts, from their projections to their gated read-outs.

    Args:
        rows: q, k, v and, with `gated`, the gate before its SiLU, side by side. [N, width].
        segments: First token, number of tokens, source and target row of each part. [n, 4], int64.
            Together they cover all N tokens.
        heads, angles, positions, states, gated, out_dtype: As in `decode`.

    Returns:
        The read-outs [N, Hq d], and [n, H] int32: 1 where they and the state after are finite.
    """
    phi_q, phi_k = features(rows, heads, angles, positions)
    out = rows.new_empty(len(rows), heads.query_width, dtype=out_dtype)
    finite = _launch(
        phi_q,
        phi_k,
        rows[:, heads.value_offset :],
        rows[:, heads.gate_offset :] if gated else None,
        heads.log_decay,
        positions,
        states,
        segments,
        out,
        values=heads.head_dim,
        has_normalizer=heads.has_normalizer,
    )
    return out, finite


def _launch(
    phi_q: Tensor,
    phi_k: Tensor,
    v: Tensor,
    gate: Tensor | None,
    log_decay: Tensor,
    positions: Tensor,
    states: Tensor,
    segments: Tensor,
    out: Tensor,
    *,
    values: int,
    has_normalizer: bool,
) -> Tensor:
    """Fill `out` and the target rows; return which parts came out finite, [n, H]."""
    heads, num_features = phi_k.shape[1:]
    if not states.is_contiguous() or states.dtype != torch.float32:
        raise ValueError("states must be contiguous float32")
    blocks = triton.cdiv(values, _VALUES)
    parts = 1 if num_features <= _WIDE else 2
    block_features = max(16, triton.next_power_of_2(triton.cdiv(num_features, parts)))
    finite = torch.empty(len(segments), heads, blocks, dtype=torch.int32, device=out.device)
    if len(segments):
        chunk_kernel[(blocks, heads, len(segments))](
            phi_q,
            phi_k,
            v,
            gate,
            log_decay,
            positions,
            states,
            segments,
            out,
            finite,
            phi_q.stride(0),
            phi_k.stride(0),
            v.stride(0),
            0 if gate is None else gate.stride(0),
            H=heads,
            G=phi_q.shape[1] // heads,
            FEATURES=num_features,
            VALUES=values,
            NORMALIZER=has_normalizer,
            BY_POSITION=log_decay.dim() == 2,
            PARTS=parts,
            # Values in half precision have fewer bits than this.
            PRECISION="tf32x3" if v.dtype == torch.float32 else "tf32",
            C=64 if block_features < _WIDE else 32,
            BLOCK_K=block_features,
            BLOCK_V=_VALUES,
            num_warps=8,
            num_stages=1,
        )
    return finite.amin(dim=2)
