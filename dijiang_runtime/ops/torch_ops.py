"""Decayed linear attention in plain torch: portable, differentiable, and independent of the batch.

    B batch    T tokens    Hq query heads    H key/value heads    K features    V value dim
    C tokens of one chunk    G = Hq / H query heads that share a state

Decays are handled as logarithms and only ever as differences that are at most 0, so nothing
overflows at any length and any decay. `step` computes every row with the same arithmetic whoever
else is in the batch.
"""

import torch
from torch import Tensor


def chunk(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor, *, chunk_size: int = 64
) -> tuple[Tensor, Tensor]:
    """Attend over a prompt, or the next part of one, with large matrix products.

    Args:
        q: Feature-mapped queries. Shape [B, T, Hq, K], float32.
        k: Feature-mapped keys. Shape [B, T, H, K], float32; Hq is a multiple of H.
        v: Values. Shape [B, T, H, V], float32.
        log_decay: Natural log of the decay, at most 0. Shape [H], or [T, H] where it depends on
            the position.
        state: The state before the first token. Shape [B, H, K, V], float32.
        chunk_size: Tokens handled at once. Changes the speed, not the result.

    Returns:
        The outputs, shape [B, T, Hq, V], and the state after the last token.
    """
    outputs = []
    for start in range(0, q.shape[1], chunk_size):
        stop = start + chunk_size
        g = log_decay if log_decay.dim() == 1 else log_decay[start:stop]
        o, state = _one_chunk(q[:, start:stop], k[:, start:stop], v[:, start:stop], g, state)
        outputs.append(o)
    if not outputs:
        return v.new_zeros((*q.shape[:3], v.shape[-1])), state
    return (torch.cat(outputs, dim=1) if len(outputs) > 1 else outputs[0]), state


def _one_chunk(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    batch, length, num_heads = q.shape[:3]
    heads, value_dim = k.shape[2], v.shape[3]
    # elapsed[h, i]: log of the decay from before the chunk to its token i.
    if log_decay.dim() == 1:
        count = torch.arange(1, length + 1, device=q.device, dtype=log_decay.dtype)
        elapsed = log_decay[:, None] * count
    else:
        elapsed = log_decay.cumsum(dim=0).T
    between = elapsed[:, :, None] - elapsed[:, None, :]  # [H, C, C]
    causal = torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
    weights = between.masked_fill(~causal, float("-inf")).exp()

    q = q.reshape(batch, length, heads, -1, q.shape[3]).permute(0, 2, 3, 1, 4)  # [B, H, G, C, K]
    k = k.transpose(1, 2)  # [B, H, C, K]
    v = v.transpose(1, 2)  # [B, H, C, V]
    scores = q @ k.unsqueeze(2).transpose(-1, -2) * weights[:, None]  # [B, H, G, C, C]
    carried = (q * elapsed.exp()[:, None, :, None]) @ state.unsqueeze(2)
    o = scores @ v.unsqueeze(2) + carried  # [B, H, G, C, V]

    to_end = (elapsed[:, -1:] - elapsed).exp()  # [H, C]
    added = (k * to_end[:, :, None]).transpose(-1, -2) @ v
    state = elapsed[:, -1].exp()[:, None, None] * state + added
    return o.permute(0, 3, 1, 2, 4).reshape(batch, length, num_heads, value_dim), state


def step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    states: Tensor,
    source: Tensor,
    target: Tensor,
) -> Tensor:
    """Attend for one token of every row, its state named by index.

    Args:
        q: Shape [B, Hq, K], float32.
        k: Shape [B, H, K].
        v: Shape [B, H, V].
        log_decay: Shape [H], or [B, H].
        states: All states of a layer. Shape [rows, H, K, V], float32; written in place.
        source: The row of `states` that holds the state before this token. Shape [B], int64.
        target: The row that receives the state after it. Distinct from every other row's, but for
            padding, whose result is never read. Shape [B], int64.

    Returns:
        The outputs, shape [B, Hq, V].
    """
    decay = log_decay.exp()[..., None, None]
    new = states[source] * decay + k.unsqueeze(-1) * v.unsqueeze(-2)  # [B, H, K, V]
    states[target] = new
    grouped = q.unflatten(1, (k.shape[1], -1))  # [B, H, G, K]
    # A sum, not a matrix product: the bits of a batched product with one row each depend on the
    # row's place in the batch.
    return (grouped.unsqueeze(-1) * new.unsqueeze(2)).sum(dim=-2).flatten(1, 2)
