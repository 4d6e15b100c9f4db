"""Random attention of every kind, and what it computes, token by token in float64."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dijiang_runtime.kernelization.feature_map import softmax_features, weighted_exp_features
from dijiang_runtime.models.attention import decay_tables, default_log_decay_rate
from dijiang_runtime.models.rotary import rotate
from dijiang_runtime.ops import reference
from dijiang_runtime.ops.triton import Heads

NUM_POSITIONS = 200
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

SHAPES = {
    "dijiang": {},
    "official": {"negated_half": False, "has_normalizer": False},
    "grouped-queries": {"num_heads": 6, "num_kv_heads": 2, "norms": True},
    "odd-sizes": {"head_dim": 20, "columns": 20, "rotary_dim": 10, "query_scale": 0.3},
    "weighted-exp": {"weighted": True, "num_heads": 2, "num_kv_heads": 1},
    "trained-tables": {"tables": True, "has_normalizer": False},
    "decays-at-both-ends": {"log_decay": (-130.0, 0.0)},
    # More features than are multiplied at once.
    "many-features": {"head_dim": 16, "columns": 96, "num_heads": 1, "num_kv_heads": 1},
}


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator).to(DEVICE)


def make_heads(
    *,
    num_heads: int = 2,
    num_kv_heads: int = 2,
    head_dim: int = 16,
    columns: int = 16,
    rotary_dim: int = 4,
    query_scale: float = 1.0,
    negated_half: bool = True,
    has_normalizer: bool = True,
    weighted: bool = False,
    norms: bool = False,
    tables: bool = False,
    log_decay: tuple[float, ...] | None = None,
) -> Heads:
    num_features = columns * (2 if negated_half else 1)
    decay = -default_log_decay_rate(num_kv_heads).exp().float()
    scales = None
    if log_decay is not None:
        decay = torch.tensor(log_decay)
    if tables:
        # The authors' tables, perturbed, with sign flips.
        n = torch.arange(NUM_POSITIONS)
        signs = torch.where(torch.arange(NUM_POSITIONS) % 37 == 5, -1.0, 1.0)
        noise = 1 + 0.1 * normal(2, num_kv_heads, NUM_POSITIONS).cpu().double()
        gamma = decay.double().exp()[:, None]
        found = decay_tables(gamma**n * noise[0] * signs, gamma**-n * noise[1] * signs.roll(9))
        decay, *scaled = (x.float().contiguous().to(DEVICE) for x in found)
        scales = (scaled[0], scaled[1])
    return Heads(
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        feature_map="weighted_exp" if weighted else "softmax",
        negated_half=negated_half,
        has_normalizer=has_normalizer,
        rotary_dim=rotary_dim,
        query_scale=query_scale,
        projection=normal(num_kv_heads, head_dim, columns) / 4,
        feature_weight=normal(num_kv_heads, num_features).abs() if weighted else None,
        norms=(normal(head_dim) + 2, normal(head_dim, seed=1) + 2) if norms else None,
        norm_eps=1e-5,
        log_decay=decay.to(DEVICE),
        table_scales=scales,
    )


@dataclass(frozen=True)
class Tokens:
    """Some tokens as a layer's matrices leave them."""

    rows: Tensor
    positions: Tensor
    angles: tuple[Tensor, Tensor]

    def part(self, which: slice | Tensor) -> "Tokens":
        cos, sin = self.angles
        return Tokens(self.rows[which], self.positions[which], (cos[which], sin[which]))


def make_tokens(heads: Heads, positions: Tensor, *, seed: int = 0, dtype=torch.float32) -> Tokens:
    width = heads.gate_offset + heads.query_width
    angle = positions.double()[:, None, None] / (1 + torch.arange(heads.rotary_dim // 2))
    angles = angle.cos().float().to(DEVICE), angle.sin().float().to(DEVICE)
    rows = normal(len(positions), width, seed=seed).to(dtype)
    return Tokens(rows, positions.to(DEVICE), angles)


def make_states(heads: Heads, num_rows: int, *, seed: int = 0) -> Tensor:
    """States whose feature mass is positive, as it always is."""
    width = heads.head_dim + heads.has_normalizer
    shape = (num_rows, heads.num_kv_heads, heads.halves * heads.columns, width)
    states = normal(*shape, seed=seed)
    if heads.has_normalizer:
        states[..., -1] = states[..., -1].abs() + 1
    return states


def expected(heads: Heads, tokens: Tokens, state: Tensor, *, gated: bool) -> tuple[Tensor, Tensor]:
    """The gated read-outs [T, Hq d] of one sequence's tokens and its state [H, K, V] after them."""
    rows = tokens.rows.double()
    q, k, v, gate = rows.split(
        [heads.query_width, heads.key_width, heads.key_width, heads.query_width], dim=1
    )
    q, k, v = (x.unflatten(1, (-1, heads.head_dim)) for x in (q, k, v))
    q, k = _features(heads, q, tokens, 0), _features(heads, k, tokens, 1)
    log_decay = heads.log_decay.double()
    if heads.table_scales is not None:
        log_decay = log_decay[tokens.positions]
        q, k = (
            x * scale.double()[tokens.positions].unsqueeze(-1)
            for x, scale in zip((q, k), heads.table_scales, strict=True)
        )
    if heads.has_normalizer:
        v = torch.cat([v, torch.ones_like(v[..., :1])], dim=-1)
    y, after = reference.chunk(q[None], k[None], v[None], log_decay, state[None])
    y = y[0]
    if heads.has_normalizer:
        y = y[..., :-1] / y[..., -1:]
    y = y.flatten(1)
    return (y * torch.nn.functional.silu(gate) if gated else y), after[0]


def _features(heads: Heads, x: Tensor, tokens: Tokens, which: int) -> Tensor:
    """φ of q or k [T, heads, d]."""
    if heads.norms is not None:
        weight = heads.norms[which].double()
        x = x * (x.square().mean(dim=-1, keepdim=True) + heads.norm_eps).rsqrt() * weight
    if which == 0:
        x = x * heads.query_scale
    x = rotate(x, (tokens.angles[0].double(), tokens.angles[1].double()))
    group = x.shape[1] // heads.num_kv_heads
    projection = heads.projection.double().repeat_interleave(group, dim=0)
    projected = torch.einsum("thd,hdr->thr", x, projection)
    if heads.feature_weight is None:
        return softmax_features(projected, negated_half=heads.negated_half)
    weight = heads.feature_weight.double().repeat_interleave(group, dim=0)
    return weighted_exp_features(projected, weight, negated_half=heads.negated_half)


def relative_error(ours: Tensor, truth: Tensor) -> float:
    return float((ours.double() - truth).norm() / truth.norm())
