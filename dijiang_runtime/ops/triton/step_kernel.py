"""One token of a row: features, state, read-out, division and gate in one pass over the state.

H key/value heads    G query heads of each    R columns of P    C columns of the state

One program takes one row and one key/value head. It reads the state's row `source` and writes the
row `target`, so that a step that fails has changed nothing that counts.
"""

import triton
import triton.language as tl

from dijiang_runtime.ops.triton.heads import feature_half, project
from dijiang_runtime.ops.triton.shared import MIN_NORMALIZER, is_finite, silu


@triton.jit(
    do_not_specialize_on_alignment=["cos", "sin", "positions", "source", "target", "finite"]
)
def step_kernel(
    q,
    k,
    v,
    gate,
    cos,
    sin,
    positions,
    projection,
    weight,
    q_norm,
    k_norm,
    log_decay,
    q_scale,
    k_scale,
    states,
    source,
    target,
    out,
    finite,
    q_stride,
    k_stride,
    v_stride,
    gate_stride,
    query_scale,
    eps,
    projection_stride,
    weight_stride,
    H: tl.constexpr,
    G: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    COLUMNS: tl.constexpr,
    HALVES: tl.constexpr,
    IS_SOFTMAX: tl.constexpr,
    ROTARY_HALF: tl.constexpr,
    BLOCK_HEAD: tl.constexpr,
    BLOCK_R: tl.constexpr,
    IS_GIVEN: tl.constexpr,
    DECAY: tl.constexpr,
    VALUES: tl.constexpr,
    NORMALIZER: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    row, kv = tl.program_id(0).to(tl.int64), tl.program_id(1)
    group, columns = tl.arange(0, BLOCK_G), tl.arange(0, BLOCK_R)
    is_query, is_column = group < G, columns < COLUMNS
    query_heads = kv * G + group
    only = tl.zeros([1], tl.int64)
    queries, keys = row * q_stride + query_heads * HEAD_DIM, row * k_stride + only + kv * HEAD_DIM
    if IS_GIVEN:
        is_given = is_query[:, None] & is_column[None, :]
        phi_q = tl.load(q + queries[:, None] + columns[None, :], mask=is_given, other=0.0)
        phi_k = tl.load(k + keys[:, None] + columns[None, :], mask=is_column[None, :], other=0.0)
    else:
        of_head = projection + kv * projection_stride
        projected_q = project(
            q, queries, row + tl.zeros([BLOCK_G], tl.int64), is_query, of_head, q_norm, cos, sin,
            query_scale, eps, HEAD_DIM, COLUMNS, ROTARY_HALF, BLOCK_G, BLOCK_HEAD, BLOCK_D,
            BLOCK_R, False,
        )  # fmt: skip
        projected_k = project(
            k, keys, row + only, only == 0, of_head, k_norm, cos, sin,
            1.0, eps, HEAD_DIM, COLUMNS, ROTARY_HALF, 1, BLOCK_HEAD, BLOCK_D,
            BLOCK_R, False,
        )  # fmt: skip
        half = weight
        if weight is not None:
            half = weight + kv * weight_stride
        phi_q = feature_half(projected_q, half, 1.0, COLUMNS, IS_SOFTMAX, BLOCK_R)
        phi_k = feature_half(projected_k, half, 1.0, COLUMNS, IS_SOFTMAX, BLOCK_R)
        if HALVES == 2:
            if weight is not None:
                half += COLUMNS
            other_q = feature_half(projected_q, half, -1.0, COLUMNS, IS_SOFTMAX, BLOCK_R)
            other_k = feature_half(projected_k, half, -1.0, COLUMNS, IS_SOFTMAX, BLOCK_R)
    if DECAY == "head":
        decay = tl.exp(tl.load(log_decay + kv))
    elif DECAY == "row":
        decay = tl.exp(tl.load(log_decay + row * H + kv))
    else:
        of_position = tl.load(positions + row) * H + kv
        decay = tl.exp(tl.load(log_decay + of_position))
        scale_q, scale_k = tl.load(q_scale + of_position), tl.load(k_scale + of_position)
        phi_q, phi_k = phi_q * scale_q, phi_k * scale_k
        if HALVES == 2:
            other_q, other_k = other_q * scale_q, other_k * scale_k

    width: tl.constexpr = VALUES + (1 if NORMALIZER else 0)
    size: tl.constexpr = HALVES * COLUMNS * width
    read = states + (tl.load(source + row) * H + kv) * size
    write = states + (tl.load(target + row) * H + kv) * size
    second: tl.constexpr = COLUMNS * width
    if NORMALIZER:
        # The last column is the state of a value that is always 1.
        last = tl.arange(0, 1) + VALUES
        one, is_there = tl.full([1], 1.0, tl.float32), last < width
        mass = _advance(read, write, last, is_there, phi_k, one, decay, width, COLUMNS)
        if HALVES == 2:
            other_mass = _advance(
                read + second, write + second, last, is_there, other_k, one, decay, width, COLUMNS
            )
    good = tl.full([], 1, tl.int32)
    for start in range(0, VALUES, BLOCK_V):
        at = start + tl.arange(0, BLOCK_V)
        is_value = at < VALUES
        value = tl.load(v + row * v_stride + kv * VALUES + at, mask=is_value, other=0.0)
        value = value.to(tl.float32)
        state = _advance(read, write, at, is_value, phi_k, value, decay, width, COLUMNS)
        if HALVES == 2:
            other_state = _advance(
                read + second, write + second, at, is_value, other_k, value, decay, width, COLUMNS
            )
        for g in range(G):
            o = _read_out(phi_q, state, group == g)
            if HALVES == 2:
                o += _read_out(other_q, other_state, group == g)
            good = good & tl.min(is_finite(o))
            if NORMALIZER:
                total = _read_out(phi_q, mass, group == g)
                if HALVES == 2:
                    total += _read_out(other_q, other_mass, group == g)
                good = good & tl.min(is_finite(total))
                # Not a maximum: that would turn a NaN into a number.
                o = o / tl.where(total < MIN_NORMALIZER, MIN_NORMALIZER, total)
            place = (kv * G + g) * VALUES + at
            if gate is not None:
                x = tl.load(gate + row * gate_stride + place, mask=is_value, other=0.0)
                o = o * silu(x.to(tl.float32))
            o_at = out + row * (H * G * VALUES) + place
            tl.store(o_at, o.to(out.dtype.element_ty), mask=is_value)
    tl.store(finite + row * H + kv, good)


@triton.jit
def _advance(
    read, write, at, is_value, phi_k, value, decay, WIDTH: tl.constexpr, COLUMNS: tl.constexpr
):
    """Write columns `at` of the next state, [R, C], and return them. phi_k [1, R], value [C]."""
    features = tl.arange(0, phi_k.shape[1])
    offsets = features[:, None] * WIDTH + at[None, :]
    mask = (features < COLUMNS)[:, None] & is_value[None, :]
    state = tl.load(read + offsets, mask=mask, other=0.0)
    key = tl.sum(phi_k, axis=0)  # Of one row: that row.
    state = state * decay + key[:, None] * value[None, :]
    tl.store(write + offsets, state, mask=mask)
    return state


@triton.jit
def _read_out(phi_q, state, is_this):
    """What one query of phi_q [G, R] reads from columns of the state [R, C]: [C]."""
    query = tl.sum(tl.where(is_this[:, None], phi_q, 0.0), axis=0)
    return tl.sum(query[:, None] * state, axis=0)
