"""DiJiang attention: projections, rotation, feature map, recurrence, read-out, gate.

N tokens    D hidden    Hq query heads    H key/value heads    d head dim    m features
"""

import math

import torch
from torch import Tensor, nn

from dijiang_runtime.kernelization.feature_map import softmax_features, weighted_exp_features
from dijiang_runtime.kernelization.projection import dct_projection
from dijiang_runtime.models.config import ModelConfig
from dijiang_runtime.models.layers import GroupNorm, Linear, RMSNorm, silu
from dijiang_runtime.models.recurrence import Recurrence
from dijiang_runtime.models.rotary import rotate
from dijiang_runtime.ops.linear import Tiles, per_head_linear
from dijiang_runtime.ops.windowed import WindowInputs, with_ones

NEUTRAL_GATE_BIAS = 1.2784645427610738
"""SiLU of this is 1: with a zero gate matrix the gate does nothing."""

# A normalizer is a sum of products of positive features; this only guards against underflow.
_MIN_NORMALIZER = 1e-30

# What an untrained map says of the tokens before the window is worth less than what the window
# says: measured, e^-2 of a token there costs a fresh conversion a third of the loss that 1 does.
_UNTRAINED_MIX = -2.0


class FeatureMap(nn.Module):
    """φ: rotated queries and keys [N, heads, d] to features [N, heads, m]."""

    weight: nn.Parameter | None

    def __init__(self, config: ModelConfig, *, seed: int) -> None:
        super().__init__()
        attention = config.attention
        self.negated_half = attention.negated_half
        columns = attention.num_features // (2 if attention.negated_half else 1)
        heads = config.num_kv_heads if attention.per_head else 1
        projection = torch.stack(
            [dct_projection(config.head_dim, columns, seed=seed + head) for head in range(heads)]
        )
        self.projection = nn.Parameter(projection if attention.per_head else projection[0])
        if attention.feature_map == "weighted_exp":
            weight = torch.ones(heads, attention.num_features)
            self.weight = nn.Parameter(weight if attention.per_head else weight[0])
        else:
            self.register_parameter("weight", None)

    def forward(self, x: Tensor, tiles: Tiles | None = None) -> Tensor:
        projected = per_head_linear(x, self.projection, tiles)
        if self.weight is None:
            return softmax_features(projected, negated_half=self.negated_half)
        weight: Tensor = self.weight
        if weight.dim() == 2:
            weight = weight.repeat_interleave(x.shape[1] // weight.shape[0], dim=0)
        return weighted_exp_features(projected, weight, negated_half=self.negated_half)


def default_log_decay_rate(num_heads: int) -> Tensor:
    """a of log γ = -exp(a) for the decays of the authors' code, shape [num_heads], float64.

    γ_h = 1 - exp(linspace(ln 1/32, ln 1/512, H)).
    """
    # On the CPU even while a model is built without storage: there torch would import its compiler.
    exponents = torch.linspace(
        math.log(1 / 32), math.log(1 / 512), num_heads, dtype=torch.float64, device="cpu"
    )
    return (-torch.log1p(-exponents.exp())).log()


class Attention(nn.Module):
    """Linear attention with a decayed recurrent state, in place of softmax attention."""

    D1: nn.Parameter
    D2: nn.Parameter

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.config = config
        self.layer = layer
        options = config.attention
        query_dim = config.num_heads * config.head_dim
        value_dim = config.num_kv_heads * config.head_dim
        self.q_proj = Linear(config.hidden_size, query_dim, bias=config.qkv_bias)
        self.k_proj = Linear(config.hidden_size, value_dim, bias=config.qkv_bias)
        self.v_proj = Linear(config.hidden_size, value_dim, bias=config.qkv_bias)
        self.o_proj = Linear(query_dim, config.hidden_size, bias=config.out_bias)
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_dim, config.norm_eps)
            self.k_norm = RMSNorm(config.head_dim, config.norm_eps)
        self.feature_map = FeatureMap(config, seed=1000 * layer)
        if options.decay_tables:
            positions = config.max_position_embeddings
            for name in ("D1", "D2"):
                table = torch.ones(config.num_kv_heads, positions)
                self.register_parameter(name, nn.Parameter(table, requires_grad=False))
            self._tables: tuple[Tensor, Tensor, Tensor] | None = None
        else:
            self.log_decay_rate = nn.Parameter(default_log_decay_rate(config.num_kv_heads).float())
        if options.gate:
            self.gate = Linear(config.hidden_size, query_dim, bias=options.gate_bias)
        if options.readout == "group_norm":
            self.readout_norm = GroupNorm(options.num_groups, query_dim)
        if options.window:
            # e^flat φ(q)·φ(k) is 1 where features are flat, as e^(q·k) where the score is 0.
            flat = math.log(options.num_features / (4 if options.negated_half else 1))
            mix = torch.full((config.num_heads,), flat + _UNTRAINED_MIX)
            self.window_mix = nn.Parameter(mix)
            self.window_mix_query = nn.Parameter(torch.zeros(config.num_heads, config.head_dim))

    def initialise_gate(self) -> None:
        """The authors' small random gate, or a neutral one where it has a bias."""
        options = self.config.attention
        if options.gate_bias:
            nn.init.zeros_(self.gate.weight)
            nn.init.constant_(self.gate.bias, NEUTRAL_GATE_BIAS)
        elif options.gate:
            nn.init.xavier_uniform_(self.gate.weight, gain=2**-2.5)

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        angles: tuple[Tensor, Tensor] | None,
        recurrence: Recurrence,
        tiles: Tiles | None,
    ) -> Tensor:
        """Return what attention adds to the residual. `x` is [N, D], `positions` [N]."""
        q, k, v = self._project(x, angles, tiles)
        phi_q = self.feature_map(q, tiles)
        if self.config.attention.window:
            y = recurrence.attend_windowed(
                self.layer, self._window_inputs(q, k, v, phi_q), positions
            )
            y = y.flatten(1)
        else:
            y = self._linear(phi_q, self.feature_map(k, tiles), v, positions, recurrence)
        if self.config.attention.gate:
            y = silu(self.gate(x, tiles), tiles) * y
        return self.o_proj(y, tiles)

    def _project(
        self, x: Tensor, angles: tuple[Tensor, Tensor] | None, tiles: Tiles | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        head_dim = self.config.head_dim
        q, k, v = (
            proj(x, tiles).unflatten(1, (-1, head_dim))
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.config.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.config.query_scale != 1.0:
            q = q * self.config.query_scale
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        return q, k, v

    def _linear(
        self, phi_q: Tensor, phi_k: Tensor, v: Tensor, positions: Tensor, recurrence: Recurrence
    ) -> Tensor:
        log_decay, phi_q, phi_k = self._decay(phi_q, phi_k, positions)
        if self.config.attention.readout == "normalizer":
            return self._normalized(phi_q, phi_k, v, log_decay, recurrence)
        return self.readout_norm(
            recurrence.attend(self.layer, phi_q, phi_k, v, log_decay).flatten(1)
        )

    def _window_inputs(self, q: Tensor, k: Tensor, v: Tensor, phi_q: Tensor) -> WindowInputs:
        options = self.config.attention
        mix = (q * self.window_mix_query.to(q.dtype)).sum(dim=-1) + self.window_mix.to(q.dtype)
        return WindowInputs(
            # The parent's scale, of which OPT has already applied all.
            q=q * (self.config.head_dim**-0.5 / self.config.query_scale),
            k=k,
            v=v,
            phi_q=phi_q,
            mix=mix,
            log_decay=-self.log_decay_rate.to(q.dtype).exp(),
            features=self.feature_map,
            window=options.window,
            sinks=options.sinks,
        )

    def _decay(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the log decay, [H] or [N, H], and the features with the tables' scales applied."""
        if not self.config.attention.decay_tables:
            return -self.log_decay_rate.to(q.dtype).exp(), q, k
        log_decay, q_scale, k_scale = (t.to(q.dtype) for t in self._decay_tables())
        group = q.shape[1] // k.shape[1]
        q = q * q_scale[positions].repeat_interleave(group, dim=1).unsqueeze(-1)
        k = k * k_scale[positions].unsqueeze(-1)
        return log_decay[positions], q, k

    def _decay_tables(self) -> tuple[Tensor, Tensor, Tensor]:
        if self.D1.requires_grad:
            return decay_tables(self.D1, self.D2)
        if self._tables is None or self._tables[0].device != self.D1.device:
            self._tables = decay_tables(self.D1, self.D2)
        return self._tables

    def _normalized(
        self, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, recurrence: Recurrence
    ) -> Tensor:
        # The state of a value that is always 1 is the accumulated feature mass.
        y = recurrence.attend(self.layer, q, k, with_ones(v), log_decay)
        return (y[..., :-1] / y[..., -1:].clamp(min=_MIN_NORMALIZER)).flatten(1)


def decay_tables(d1: Tensor, d2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Turn the authors' per-position tables into the stable recurrent form.

    The weight of token j in row n is D1[n] D2[j]. With c_n = max over j <= n of |D2[j]|:
    decay_n = c_{n-1} / c_n, k_scale_n = D2[n] / c_n, q_scale_n = D1[n] c_n, all but the last
    at most 1 in magnitude. Differentiable: c cancels, so it has no gradient.

    Args:
        d1, d2: Shape [H, P], finite.

    Returns:
        log decay, q scale and k scale, each of shape [P, H] and float64.
    """
    d1, d2 = d1.double(), d2.double()
    c = d2.detach().abs().cummax(dim=1).values.clamp(min=torch.finfo(torch.float64).tiny)
    previous = torch.cat([c[:, :1], c[:, :-1]], dim=1)
    return (previous / c).log().T, (d1 * c).T, (d2 / c).T
