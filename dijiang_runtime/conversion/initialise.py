"""The weights that a converted model does not inherit: feature maps, decays, gates, norms."""

import math

import torch
from torch import Tensor

from dijiang_runtime.kernelization.projection import dct_projection
from dijiang_runtime.models.attention import Attention, default_log_decay_rate
from dijiang_runtime.models.decoder import Decoder

# Layers are this far apart in seeds, so that no two heads of a model share one.
_SEEDS_PER_LAYER = 1000


def initialise_attention(
    model: Decoder, *, seed: int, min_half_life: float, max_half_life: float
) -> None:
    """Give every attention its starting feature map, decays and gate, in place.

    * `official`: the authors' draws. One map for the layer from Gaussian quantiles of random
      points, decays 1 - exp(linspace(ln 1/32, ln 1/512)), a small random gate.
    * `dijiang`: a map for every key/value head from low-discrepancy points, half-lives from
      `min_half_life` to `max_half_life` in equal ratios, a gate that starts as 1.

    The gate and the read-out norm are set when the decoder is constructed.
    """
    official = model.config.preset == "official"
    heads = model.config.num_kv_heads
    rate = default_log_decay_rate(heads)
    if not official:
        rate = half_life_log_decay_rate(heads, min_half_life, max_half_life)
    attentions = [module for module in model.modules() if isinstance(module, Attention)]
    for index, attention in enumerate(attentions):
        with torch.no_grad():
            attention.feature_map.projection.copy_(
                _projection(attention, seed + _SEEDS_PER_LAYER * index, official=official)
            )
            attention.log_decay_rate.copy_(rate)


def half_life_log_decay_rate(num_heads: int, shortest: float, longest: float) -> Tensor:
    """a of log γ = -exp(a) for half-lives in tokens from shortest to longest, `[num_heads]`."""
    half_lives = torch.logspace(
        math.log2(shortest), math.log2(longest), num_heads, base=2, dtype=torch.float64
    )
    return (math.log(2) / half_lives).log()


def _projection(attention: Attention, seed: int, *, official: bool) -> Tensor:
    head_dim = attention.config.head_dim
    shape = attention.feature_map.projection.shape
    if official:
        return dct_projection(head_dim, shape[-1], seed=seed)
    maps = [
        dct_projection(head_dim, shape[-1], seed=seed + head, points="low_discrepancy")
        for head in range(shape[0])
    ]
    return torch.stack(maps)
