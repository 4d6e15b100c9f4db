"""Attention token by token in float64: slow, obvious, and the truth."""

import torch
from torch import Tensor


def chunk(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor, *, chunk_size: int = 64
) -> tuple[Tensor, Tensor]:
    """Attend over T tokens. Shapes as in `torch_ops.chunk`; `chunk_size` changes nothing here.

    Returns:
        The outputs [B, T, Hq, V] and the state after the last token [B, H, K, V], both float64.
    """
    batch, length, num_heads = q.shape[:3]
    group = num_heads // k.shape[2]
    decay = log_decay.double().exp().expand(length, k.shape[2])
    state = state.double()
    outputs = []
    for t in range(length):
        outer = k[:, t].double().unsqueeze(-1) * v[:, t].double().unsqueeze(-2)
        state = decay[t, :, None, None] * state + outer
        per_query_head = state.repeat_interleave(group, dim=1)
        outputs.append(torch.einsum("bhk,bhkv->bhv", q[:, t].double(), per_query_head))
    if not outputs:
        return q.new_zeros((batch, 0, num_heads, v.shape[-1]), dtype=torch.float64), state
    return torch.stack(outputs, dim=1), state


def step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    states: Tensor,
    source: Tensor,
    target: Tensor,
) -> Tensor:
    """Attend for one token of every row. Shapes as in `torch_ops.step`; `states` is float64."""
    outputs = []
    for row in range(q.shape[0]):
        decay = log_decay if log_decay.dim() == 1 else log_decay[row]
        o, state = chunk(
            q[row, None, None],
            k[row, None, None],
            v[row, None, None],
            decay,
            states[source[row], None],
        )
        states[target[row]] = state[0]
        outputs.append(o[0, 0])
    return torch.stack(outputs)


def windowed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    phi_q: Tensor,
    phi_k: Tensor,
    mix: Tensor,
    log_decay: Tensor,
    *,
    window: int,
    sinks: int,
) -> Tensor:
    """Softmax over window and sinks with linear attention over the rest: `windowed`'s formula.

    Args:
        q: One whole sequence. Shape [T, Hq, d]; k and v [T, H, d]; phi_q [T, Hq, K]; phi_k
            [T, H, K]; mix [T, Hq]; log_decay [H].

    Returns:
        The outputs [T, Hq, d], float64.
    """
    group = q.shape[1] // k.shape[1]
    q, k, v, phi_q, phi_k, mix = (x.double() for x in (q, k, v, phi_q, phi_k, mix))
    decay = log_decay.double().exp()
    outputs = []
    for n in range(q.shape[0]):
        for head in range(q.shape[1]):
            kv = head // group
            weights = []
            for j in range(n + 1):
                if j > n - window or j < sinks:
                    weights.append((q[n, head] @ k[j, kv]).exp())
                else:
                    similarity = phi_q[n, head] @ phi_k[j, kv]
                    scale = mix[n, head].exp() * decay[kv] ** (n - window - j)
                    weights.append(scale * similarity)
            w = torch.stack(weights)
            outputs.append(w @ v[: n + 1, kv] / w.sum())
    return torch.stack(outputs).view_as(q)
