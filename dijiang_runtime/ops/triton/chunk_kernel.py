"""A part of a prompt, chunk by chunk, from its own state.

H key/value heads    G query heads of each    K features    V value dim    C tokens of one chunk

One program takes one part, one key/value head and some columns of the values, and carries those
columns of the state in registers. Decays are logarithms, and only ever differences that are at
most 0. A part's chunks begin at its first token, so its bits do not depend on its neighbours.
"""

import triton
import triton.language as tl

from dijiang_runtime.ops.triton.shared import MIN_NORMALIZER, dot, is_finite, silu


@triton.jit(do_not_specialize_on_alignment=["positions", "segments", "finite"])
def chunk_kernel(
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
