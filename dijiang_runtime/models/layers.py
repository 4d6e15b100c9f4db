"""The small layers that the decoder is made of. Each takes rows [N, features], never a batch."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dijiang_runtime.models.config import ModelConfig
from dijiang_runtime.ops import activations
from dijiang_runtime.ops.linear import Tiles, linear


class Linear(nn.Linear):
    """A linear layer whose engine form multiplies tile by tile (`ops.linear`)."""

    def forward(self, x: Tensor, tiles: Tiles | None = None) -> Tensor:
        return linear(x, self.weight, self.bias, tiles)


class RMSNorm(nn.Module):
    """x / rms(x) * weight, the square mean taken in float32 or wider."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


class GroupNorm(nn.Module):
    """Group norm over the concatenated heads, as in the authors' code: groups are runs of
    consecutive channels, and straddle heads where their number does not divide."""

    def __init__(self, num_groups: int, num_channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_groups = num_groups
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return F.group_norm(x, self.num_groups, weight, bias, self.eps)


class LayerNorm(nn.LayerNorm):
    """Layer norm computed in the dtype of its input."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


def make_norm(config: ModelConfig) -> nn.Module:
    """The family's norm over hidden states."""
    if config.norm == "rmsnorm":
        return RMSNorm(config.hidden_size, config.norm_eps)
    return LayerNorm(config.hidden_size, config.norm_eps)


class MLP(nn.Module):
    """down(act(up(x))), or down(act(gate(x)) * up(x)) where the family gates."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.activation = config.activation
        self.up = Linear(hidden, inner, bias=bias)
        self.down = Linear(inner, hidden, bias=bias)
        self.gate = Linear(hidden, inner, bias=bias) if config.gated_mlp else None

    def forward(self, x: Tensor, tiles: Tiles | None) -> Tensor:
        if self.gate is None:
            return self.down(self._activate(self.up(x, tiles), tiles), tiles)
        return self.down(self._activate(self.gate(x, tiles), tiles) * self.up(x, tiles), tiles)

    def _activate(self, x: Tensor, tiles: Tiles | None) -> Tensor:
        match self.activation:
            case "gelu":
                return F.gelu(x)
            case "gelu_tanh":
                return F.gelu(x, approximate="tanh") if tiles is None else activations.gelu_tanh(x)
            case "relu":
                return F.relu(x)
            case "silu":
                return silu(x, tiles)


def silu(x: Tensor, tiles: Tiles | None) -> Tensor:
    """SiLU; with tiles, in the form that does not depend on the batch."""
    return F.silu(x) if tiles is None else activations.silu(x)
