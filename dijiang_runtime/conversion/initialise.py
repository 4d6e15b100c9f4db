"""The weights that a converted model does not inherit: feature maps, decays, gates, norms."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dijiang_runtime.kernelization.projection import dct_projection
from dijiang_runtime.models.attention import Attention, default_log_decay_rate
from dijiang_runtime.models.config import ModelConfig
from dijiang_runtime.models.loader import NoInitialisation

# Layers are this far apart in seeds, so that no two heads of a model share one.
_SEEDS_PER_LAYER = 1000
# Copied from the parent: never given a value here.
_COPIED = ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionStart:
    """Where the new parameters of the attention begin."""

    seed: int
    min_half_life: float
    max_half_life: float
    half_lives: Tensor | None = None
    """Of every head, in tokens, [layers, heads]: takes the place of the range."""


def new_attention_tensors(
    config: ModelConfig, layer: int, start: AttentionStart
) -> Iterator[tuple[str, Tensor]]:
    """Yield the starting feature map, decays and gate of a layer, by their names in the attention.

    * `official`: the authors' draws. One map for the layer from Gaussian quantiles of random
      points, decays 1 - exp(linspace(ln 1/32, ln 1/512)), a small random gate.
    * otherwise: a map for every key/value head from low-discrepancy points, half-lives from
      `min_half_life` to `max_half_life` in equal ratios, or calibrated; a gate that starts as 1.
    """
    seed = start.seed + _SEEDS_PER_LAYER * layer
    with NoInitialisation():
        attention = Attention(config, layer)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        attention.initialise_gate()
        attention.feature_map.projection.copy_(_projection(attention, seed))
        attention.log_decay_rate.copy_(_log_decay_rate(config, layer, start))
    for name, tensor in attention.state_dict().items():
        if not name.startswith(_COPIED):
            yield name, tensor


def _log_decay_rate(config: ModelConfig, layer: int, start: AttentionStart) -> Tensor:
    if config.preset == "official":
        return default_log_decay_rate(config.num_kv_heads)
    if start.half_lives is not None:
        return half_life_log_decay_rate(start.half_lives[layer])
    shortest, longest = math.log2(start.min_half_life), math.log2(start.max_half_life)
    spread = torch.logspace(shortest, longest, config.num_kv_heads, base=2, dtype=torch.float64)
    return half_life_log_decay_rate(spread)


def half_life_log_decay_rate(half_lives: Tensor) -> Tensor:
    """a of log γ = -exp(a) for half-lives in tokens, elementwise, float64."""
    return (math.log(2) / half_lives.double()).log()


def _projection(attention: Attention, seed: int) -> Tensor:
    head_dim = attention.config.head_dim
    shape = attention.feature_map.projection.shape
    if attention.config.preset == "official":
        return dct_projection(head_dim, shape[-1], seed=seed)
    maps = [
        dct_projection(head_dim, shape[-1], seed=seed + head, points="low_discrepancy")
        for head in range(shape[0])
    ]
    return torch.stack(maps)
