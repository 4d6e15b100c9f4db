"""An independent model: transformers' own module with the authors' formula as its attention.

Everything but attention is transformers' code (embeddings, norms, rotation, MLPs, residuals). The
attention is the quadratic form of the paper's code, written from the formula, in the input's dtype.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel


class ParallelAttention:
    """DiJiang attention of every layer of a transformers model, with its own random parameters."""

    def __init__(self, model: PreTrainedModel, preset: str, seed: int) -> None:
        config = model.config
        self.preset = preset
        self.heads = config.num_attention_heads
        self.kv_heads = getattr(config, "num_key_value_heads", None) or self.heads
        self.dim = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.layers = config.num_hidden_layers
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int, scale: float = 1.0) -> Tensor:
            return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)

        inner = self.heads * self.dim
        self.window, self.sinks = (64, 4) if preset == "dijiang+window" else (0, 0)
        per_head = () if preset == "official" else (self.kv_heads,)
        shape = (*per_head, self.dim, self.dim)
        self.projection = [normal(*shape, scale=self.dim**-0.5) for _ in range(self.layers)]
        self.gate = [normal(inner, config.hidden_size, scale=0.3) for _ in range(self.layers)]
        self.gate_bias = [normal(inner) for _ in range(self.layers)]
        self.mix = [normal(self.heads) for _ in range(self.layers)]
        self.mix_query = [normal(self.heads, self.dim, scale=0.1) for _ in range(self.layers)]
        self.norm_weight = [normal(inner) for _ in range(self.layers)]
        self.norm_bias = [normal(inner) for _ in range(self.layers)]
        rates = torch.linspace(math.log(1 / 32), math.log(1 / 512), self.kv_heads)
        self.gamma = 1 - rates.double().exp()
        self.inputs: dict[int, Tensor] = {}

    def attach(self, model: PreTrainedModel) -> None:
        """Make the model compute DiJiang attention."""
        AttentionInterface.register("dijiang_parallel", self._attend)
        model.config._attn_implementation = "dijiang_parallel"
        for module in model.modules():
            if hasattr(module, "layer_idx") and type(module).__name__.endswith("Attention"):
                module.register_forward_pre_hook(self._remember(module.layer_idx), with_kwargs=True)

    def _remember(self, layer: int) -> Callable:
        def hook(module, args, kwargs) -> None:
            self.inputs[layer] = args[0] if args else kwargs["hidden_states"]

        return hook

    def _attend(self, module, query, key, value, attention_mask, **kwargs) -> tuple[Tensor, None]:
        """[B, H, T, d] queries, keys and values, rotated, to [B, T, H, d], gated."""
        layer, group = module.layer_idx, self.heads // self.kv_heads
        key = key.repeat_interleave(self.heads // key.shape[1], dim=1)
        value = value.repeat_interleave(self.heads // value.shape[1], dim=1)
        projection = self.projection[layer].to(query.dtype)
        if self.preset != "official":
            projection = projection.repeat_interleave(group, dim=0)

        def features(x: Tensor) -> Tensor:
            z = x @ projection
            if self.preset == "official":
                return z.softmax(-1)
            return torch.cat([z.softmax(-1), (-z).softmax(-1)], dim=-1)

        length = query.shape[2]
        n = torch.arange(length)
        lag = (n[:, None] - n[None, :]).clamp(min=0)
        gamma = self.gamma.repeat_interleave(group)
        decay = (gamma[:, None, None] ** lag).tril().to(query.dtype)
        weights = features(query) @ features(key).transpose(-1, -2) * decay
        if self.window:
            weights = self._windowed(weights, kwargs["scaling"], query, key, layer)
        y = weights @ value
        if self.preset != "official":
            y = y / weights.sum(-1, keepdim=True)
        y = y.transpose(1, 2)  # [B, T, H, d]
        flat = y.flatten(2)
        x = self.inputs[layer]
        gate = x @ self.gate[layer].to(x.dtype).T
        if self.preset == "official":
            flat = self._group_norm(flat, layer)
        else:
            gate = gate + self.gate_bias[layer].to(x.dtype)
        return (flat * gate * gate.sigmoid()).view(y.shape), None

    def _windowed(
        self, weights: Tensor, scaling: float, query: Tensor, key: Tensor, layer: int
    ) -> Tensor:
        """The parent's softmax weights where near; scaled linear ones, decaying from there, far."""
        n = torch.arange(query.shape[2])
        is_near = (n[:, None] - n[None, :] < self.window) | (n[None, :] < self.sinks)
        mix = torch.einsum("bhnd,hd->bhn", query, self.mix_query[layer].to(query.dtype))
        mix = mix + self.mix[layer].to(query.dtype)[:, None]
        gamma = self.gamma.repeat_interleave(self.heads // self.kv_heads).to(query.dtype)
        far = weights * mix.exp()[..., None] / gamma[:, None, None] ** self.window
        near = (query @ key.transpose(-1, -2) * scaling).exp().tril()
        return torch.where(is_near, near, far)

    def _group_norm(self, flat: Tensor, layer: int) -> Tensor:
        """Groups are runs of H channels: as many groups as a head has dimensions."""
        groups = flat.unflatten(-1, (self.dim, self.heads))
        mean = groups.mean(-1, keepdim=True)
        variance = ((groups - mean) ** 2).mean(-1, keepdim=True)
        normed = ((groups - mean) / (variance + 1e-5).sqrt()).flatten(-2)
        return normed * self.norm_weight[layer].to(flat) + self.norm_bias[layer].to(flat)

    def parameters(self) -> dict[str, Tensor]:
        """The same parameters under the names of a DiJiang checkpoint."""
        named: dict[str, Tensor] = {}
        for i in range(self.layers):
            prefix = f"layers.{i}.attention"
            named[f"{prefix}.feature_map.projection"] = self.projection[i]
            named[f"{prefix}.log_decay_rate"] = (-self.gamma.log()).log()
            named[f"{prefix}.gate.weight"] = self.gate[i]
            if self.window:
                named[f"{prefix}.window_mix"] = self.mix[i]
                named[f"{prefix}.window_mix_query"] = self.mix_query[i]
            if self.preset == "official":
                named[f"{prefix}.readout_norm.weight"] = self.norm_weight[i]
                named[f"{prefix}.readout_norm.bias"] = self.norm_bias[i]
            else:
                named[f"{prefix}.gate.bias"] = self.gate_bias[i]
        return named
