"""Parts of several prompts in one launch, chunk by chunk, each from its own state.

N tokens of all parts    n parts    Hq query heads    H key/value heads    K features    V value dim
C tokens of one chunk

One program takes one part, one key/value head and some columns of the values, and carries those
columns of the state in registers. Decays are logarithms, and only ever differences that are at
most 0. A part's chunks begin at its first token, so its bits do not depend on its neighbours.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dijiang_runtime.ops.triton.features import features
from dijiang_runtime.ops.triton.heads import Heads
from dijiang_runtime.ops.triton.shared import MIN_NORMALIZER, dot, is_finite, silu

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
        _chunk[(blocks, heads, len(segments))](
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


@triton.jit(do_not_specialize_on_alignment=["positions", "segments", "finite"])
def _chunk(
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
    q_stride,
    k_stride,
    v_stride,
    gate_stride,
    H: tl.constexpr,
    G: tl.constexpr,
    FEATURES: tl.constexpr,
    VALUES: tl.constexpr,
    NORMALIZER: tl.constexpr,
    BY_POSITION: tl.constexpr,
    PARTS: tl.constexpr,
    PRECISION: tl.constexpr,
    C: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    block, kv, part = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    first = tl.load(segments + part * 4)
    length = tl.load(segments + part * 4 + 1)
    width: tl.constexpr = VALUES + (1 if NORMALIZER else 0)
    size: tl.constexpr = FEATURES * width
    read = states + (tl.load(segments + part * 4 + 2) * H + kv) * size
    write = states + (tl.load(segments + part * 4 + 3) * H + kv) * size

    at = block * BLOCK_V + tl.arange(0, BLOCK_V)
    is_value = at < VALUES
    # The features in one part or in two: [0, SPLIT) and [SPLIT, FEATURES).
    SPLIT: tl.constexpr = (FEATURES + PARTS - 1) // PARTS
    low = tl.arange(0, BLOCK_K)
    high = low + SPLIT
    is_low, is_high = low < SPLIT, high < FEATURES
    state, mass = _load_state(read, low, is_low, at, is_value, VALUES, NORMALIZER)
    if PARTS == 2:
        state_2, mass_2 = _load_state(read, high, is_high, at, is_value, VALUES, NORMALIZER)

    place = tl.arange(0, C)
    is_past = place[:, None] >= place[None, :]
    good = tl.full([], 1, tl.int32)
    for start in range(0, length, C):
        token = first + start + place
        is_token = start + place < length
        # elapsed: log of the decay from before the chunk to each of its tokens.
        if BY_POSITION:
            position = tl.load(positions + token, mask=is_token, other=0)
            log = tl.load(log_decay + position * H + kv, mask=is_token, other=0.0)
            elapsed = tl.cumsum(log, axis=0)
            whole = tl.sum(log)
        else:
            log = tl.load(log_decay + kv)
            elapsed = log * (place + 1)
            whole = log * tl.minimum(length - start, C).to(tl.float32)
        between = tl.where(is_past, elapsed[:, None] - elapsed[None, :], float("-inf"))
        weights = tl.exp(between)
        since = tl.exp(elapsed)[:, None]
        key_at = phi_k + token * k_stride + kv * FEATURES
        key = _load_features(key_at, low, is_token, is_low)
        if PARTS == 2:
            key_2 = _load_features(key_at, high, is_token, is_high)
        value_at = token[:, None] * v_stride + kv * VALUES + at[None, :]
        is_entry = is_token[:, None] & is_value[None, :]
        value = tl.load(v + value_at, mask=is_entry, other=0.0).to(tl.float32)
        for g in range(G):
            query_at = phi_q + token * q_stride + (kv * G + g) * FEATURES
            query = _load_features(query_at, low, is_token, is_low)
            scores = dot(query, tl.trans(key), tl.zeros([C, C], tl.float32), PRECISION)
            query = query * since
            o = dot(query, state, tl.zeros([C, BLOCK_V], tl.float32), PRECISION)
            total = tl.sum(query * mass[None, :], axis=1)
            if PARTS == 2:
                query = _load_features(query_at, high, is_token, is_high)
                scores = dot(query, tl.trans(key_2), scores, PRECISION)
                query = query * since
                o = dot(query, state_2, o, PRECISION)
                total += tl.sum(query * mass_2[None, :], axis=1)
            scores = scores * weights
            o = dot(scores, value, o, PRECISION)
            good = good & tl.min(is_finite(o))
            if NORMALIZER:
                total += tl.sum(scores, axis=1)
                good = good & tl.min(is_finite(total))
                # Not a maximum: that would turn a NaN into a number.
                o = o / tl.where(total < MIN_NORMALIZER, MIN_NORMALIZER, total)[:, None]
            channel = ((kv * G + g) * VALUES + at)[None, :]
            if gate is not None:
                entry = gate + token[:, None] * gate_stride + channel
                o = o * silu(tl.load(entry, mask=is_entry, other=0.0).to(tl.float32))
            o_at = out + token[:, None] * (H * G * VALUES) + channel
            tl.store(o_at, o.to(out.dtype.element_ty), mask=is_entry)
        # Of padding, this would grow: its keys are 0, and 0 times infinity is not.
        to_end = tl.exp(tl.where(is_token, whole - elapsed, 0.0))[:, None]
        state, mass = _advance(state, mass, key * to_end, value, tl.exp(whole), PRECISION)
        if PARTS == 2:
            state_2, mass_2 = _advance(
                state_2, mass_2, key_2 * to_end, value, tl.exp(whole), PRECISION
            )

    is_first = block == 0
    good = good & _store_state(
        write, low, is_low, at, is_value, state, mass, is_first, VALUES, NORMALIZER
    )
    if PARTS == 2:
        good = good & _store_state(
            write, high, is_high, at, is_value, state_2, mass_2, is_first, VALUES, NORMALIZER
        )
    tl.store(finite + (part * H + kv) * tl.num_programs(0) + block, good)


@triton.jit
def _load_features(start, features, is_token, is_feature):
    """[C, K] float32, 0 beyond the tokens and the features."""
    mask = is_token[:, None] & is_feature[None, :]
    return tl.load(start[:, None] + features[None, :], mask=mask, other=0.0)


@triton.jit
def _load_state(
    read, features, is_feature, at, is_value, VALUES: tl.constexpr, NORMALIZER: tl.constexpr
):
    """Columns `at` of the state, [K, V], and the column of the feature mass, [K]."""
    WIDTH: tl.constexpr = VALUES + (1 if NORMALIZER else 0)
    mask = is_feature[:, None] & is_value[None, :]
    state = tl.load(read + features[:, None] * WIDTH + at[None, :], mask=mask, other=0.0)
    if NORMALIZER:
        mass = tl.load(read + features * WIDTH + VALUES, mask=is_feature, other=0.0)
    else:
        mass = tl.zeros_like(features).to(tl.float32)
    return state, mass


@triton.jit
def _advance(state, mass, late, value, decay, PRECISION: tl.constexpr):
    """State and mass after a chunk, its keys decayed to its end."""
    state = dot(tl.trans(late), value, state * decay, PRECISION)
    return state, mass * decay + tl.sum(late, axis=0)


@triton.jit
def _store_state(
    write,
    features,
    is_feature,
    at,
    is_value,
    state,
    mass,
    is_first,
    VALUES: tl.constexpr,
    NORMALIZER: tl.constexpr,
):
    """Write it, the mass by the first of the programs that hold it. Returns 1 if it is finite."""
    WIDTH: tl.constexpr = VALUES + (1 if NORMALIZER else 0)
    mask = is_feature[:, None] & is_value[None, :]
    tl.store(write + features[:, None] * WIDTH + at[None, :], state, mask=mask)
    good = tl.min(is_finite(state))
    if NORMALIZER:
        tl.store(write + features * WIDTH + VALUES, mass, mask=is_feature & is_first)
        good = good & tl.min(is_finite(mass))
    return good
