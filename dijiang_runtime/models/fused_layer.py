"""One layer's weights as the fused kernels read them.

What has the same inputs is one matrix, and small tensors that every row needs are float32.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dijiang_runtime.models.config import ModelConfig
from dijiang_runtime.models.layers import RMSNorm

if TYPE_CHECKING:
    from dijiang_runtime.ops.triton import Heads


@dataclass(frozen=True, slots=True)
class FusedLayer:
    """What the kernels read of one layer."""

    attention_norm: tuple[Tensor, Tensor | None]
    mlp_norm: tuple[Tensor, Tensor | None]
    qkvg: tuple[Tensor, Tensor | None]
    """Queries, keys, values and gate as one matrix, and its bias."""
    heads: "Heads"
    group_norm: tuple[Tensor, Tensor] | None
    o: tuple[Tensor, Tensor | None]
    up: tuple[Tensor, Tensor | None]
    """With the gate's rows first, where the family gates."""
    down: tuple[Tensor, Tensor | None]


def fused_layer(layer: Any, config: ModelConfig) -> FusedLayer:
    """What the kernels read of a decoder's layer, whose matrices become parts of joint ones."""
    attention, mlp, options = layer.attention, layer.mlp, config.attention
    projections = [attention.q_proj, attention.k_proj, attention.v_proj]
    gate = [attention.gate] if options.gate else []
    norm = attention.readout_norm if options.readout == "group_norm" else None
    return FusedLayer(
        attention_norm=affine_of(layer.attention_norm),
        mlp_norm=affine_of(layer.mlp_norm),
        qkvg=_join([*projections, *gate]),
        heads=_heads(attention, config),
        group_norm=None if norm is None else (norm.weight, norm.bias),
        o=matrix_of(attention.o_proj),
        up=matrix_of(mlp.up) if mlp.gate is None else _join([mlp.gate, mlp.up]),
        down=matrix_of(mlp.down),
    )


def matrix_of(linear: nn.Linear) -> tuple[Tensor, Tensor | None]:
    return linear.weight, linear.bias


def affine_of(norm: Any) -> tuple[Tensor, Tensor | None]:
    return norm.weight, None if isinstance(norm, RMSNorm) else norm.bias


def _heads(attention: Any, config: ModelConfig) -> "Heads":
    # Imports Triton, which a CPU does without.
    from dijiang_runtime.ops.triton import Heads

    options, features = config.attention, attention.feature_map
    scales = None
    if options.decay_tables:
        tables = attention._decay_tables()
        log_decay, q_scale, k_scale = (t.float().contiguous() for t in tables)
        scales = q_scale, k_scale
    else:
        log_decay = -attention.log_decay_rate.float().exp()
    weight = features.weight
    norms = (attention.q_norm.weight, attention.k_norm.weight) if config.qk_norm else None
    return Heads(
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        feature_map=options.feature_map,
        negated_half=options.negated_half,
        has_normalizer=options.readout == "normalizer",
        rotary_dim=config.rotary_dim,
        query_scale=config.query_scale,
        projection=features.projection.float().contiguous(),
        feature_weight=None if weight is None else weight.float().contiguous(),
        norms=None if norms is None else (norms[0].float(), norms[1].float()),
        norm_eps=config.norm_eps,
        log_decay=log_decay,
        table_scales=scales,
    )


def _join(linears: Sequence[nn.Linear]) -> tuple[Tensor, Tensor | None]:
    """One matrix of several with the same inputs, which become parts of it."""
    weight = torch.cat([linear.weight for linear in linears])
    sizes = [linear.out_features for linear in linears]
    for linear, part in zip(linears, weight.split(sizes), strict=True):
        linear.weight = nn.Parameter(part, requires_grad=False)
    if all(linear.bias is None for linear in linears):
        return weight, None
    none = [weight.new_zeros(size) for size in sizes]
    biases = [z if x.bias is None else x.bias for x, z in zip(linears, none, strict=True)]
    return weight, torch.cat([bias.to(weight.dtype) for bias in biases])
