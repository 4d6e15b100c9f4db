"""GPT-NeoX (Pythia): the vanilla layout, and the one of the authors' DiJiang checkpoints.

The fused projection holds, for every head, its q, k and v rows in this order.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from dijiang_runtime.errors import ModelLoadError
from dijiang_runtime.models.attention import default_log_decay_rate
from dijiang_runtime.models.config import ModelConfig, Preset
from dijiang_runtime.models.hf_config import (
    activation,
    integer,
    rope_scaling,
    rope_value,
    token_ids,
)
from dijiang_runtime.models.presets import attention_config
from dijiang_runtime.models.weights import TensorSource, first_non_finite

PREFIX = "gpt_neox.layers"


def config_from_parent(hf: Mapping[str, Any], preset: Preset) -> ModelConfig:
    """Describe the DiJiang model that a vanilla GPT-NeoX `config.json` becomes."""
    hidden, heads = integer(hf, "hidden_size"), integer(hf, "num_attention_heads")
    head_dim = hidden // heads
    rotary = float(rope_value(hf, "partial_rotary_factor", hf.get("rotary_pct", 0.25)))
    return ModelConfig(
        family="gpt_neox",
        preset=preset,
        vocab_size=integer(hf, "vocab_size"),
        hidden_size=hidden,
        intermediate_size=integer(hf, "intermediate_size"),
        num_layers=integer(hf, "num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=head_dim,
        max_position_embeddings=integer(hf, "max_position_embeddings"),
        attention=attention_config(preset, head_dim),
        norm_eps=float(hf.get("layer_norm_eps", 1e-5)),
        parallel_residual=bool(hf.get("use_parallel_residual", True)),
        activation=activation(str(hf.get("hidden_act", "gelu"))),
        qkv_bias=bool(hf.get("attention_bias", True)),
        out_bias=bool(hf.get("attention_bias", True)),
        rotary_dim=int(head_dim * rotary),
        rope_theta=float(rope_value(hf, "rope_theta", hf.get("rotary_emb_base", 10000.0))),
        rope_scaling=rope_scaling(hf),
        tie_word_embeddings=bool(hf.get("tie_word_embeddings", False)),
        bos_token_id=hf.get("bos_token_id"),
        eos_token_ids=token_ids(hf.get("eos_token_id")),
    )


def parent_weights(config: ModelConfig, source: TensorSource) -> Iterator[tuple[str, Tensor]]:
    """Yield what is copied from a vanilla checkpoint, under this project's names."""
    yield "embed_tokens.weight", source.get("gpt_neox.embed_in.weight")
    for i in range(config.num_layers):
        theirs, ours = f"{PREFIX}.{i}", f"layers.{i}"
        for part in ("weight", "bias"):
            yield f"{ours}.attention_norm.{part}", source.get(f"{theirs}.input_layernorm.{part}")
            yield f"{ours}.mlp_norm.{part}", source.get(f"{theirs}.post_attention_layernorm.{part}")
            yield f"{ours}.mlp.up.{part}", source.get(f"{theirs}.mlp.dense_h_to_4h.{part}")
            yield f"{ours}.mlp.down.{part}", source.get(f"{theirs}.mlp.dense_4h_to_h.{part}")
        for part in ("weight", "bias") if config.qkv_bias else ("weight",):
            fused = source.get(f"{theirs}.attention.query_key_value.{part}")
            for name, rows in zip("qkv", _split_fused(fused, config), strict=True):
                yield f"{ours}.attention.{name}_proj.{part}", rows
            yield f"{ours}.attention.o_proj.{part}", source.get(f"{theirs}.attention.dense.{part}")
    for part in ("weight", "bias"):
        yield f"final_norm.{part}", source.get(f"gpt_neox.final_layer_norm.{part}")
    if not config.tie_word_embeddings:
        yield "lm_head.weight", source.get("embed_out.weight")


def _split_fused(fused: Tensor, config: ModelConfig) -> list[Tensor]:
    """[H * 3 * d, ...] with rows [head][q, k, v][d] to three of [H * d, ...]."""
    by_head = fused.unflatten(0, (config.num_heads, 3, config.head_dim))
    return [by_head[:, i].flatten(0, 1).contiguous() for i in range(3)]


def is_authors_checkpoint(source: TensorSource) -> bool:
    """Whether these are the weights of the authors' modified GPT-NeoX, not of a vanilla one."""
    return f"{PREFIX}.0.attention.proj_matrix" in source.names


def authors_config(hf: Mapping[str, Any], source: TensorSource) -> ModelConfig:
    """Describe a checkpoint of the authors' code.

    Their script resizes the embeddings without telling `config.json`, so the vocabulary is counted
    in the weights. Decay tables that hold a fixed decay need no table, and so set no limit.
    """
    base = config_from_parent(hf, "official")
    tables = not all(_fixed_decay(*_read_tables(source, i)) for i in range(base.num_layers))
    return dataclasses.replace(
        base,
        vocab_size=source.shape("gpt_neox.embed_in.weight")[0],
        max_position_embeddings=source.shape(f"{PREFIX}.0.attention.D1")[2],
        attention=dataclasses.replace(base.attention, decay_tables=tables),
    )


def authors_weights(config: ModelConfig, source: TensorSource) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of the authors' checkpoint under this project's names."""
    yield from parent_weights(config, source)
    for i in range(config.num_layers):
        theirs, ours = f"{PREFIX}.{i}.attention", f"layers.{i}.attention"
        yield f"{ours}.feature_map.projection", source.get(f"{theirs}.proj_matrix")
        # W_G multiplies from the right in their code.
        yield f"{ours}.gate.weight", source.get(f"{theirs}.W_G").T.contiguous()
        for part in ("weight", "bias"):
            yield f"{ours}.readout_norm.{part}", source.get(f"{theirs}.group_norm.{part}")
        d1, d2 = _read_tables(source, i)
        if config.attention.decay_tables:
            yield f"{ours}.D1", d1.float()
            yield f"{ours}.D2", d2.float()
        else:
            yield f"{ours}.log_decay_rate", _log_decay_rate(d1)


def _read_tables(source: TensorSource, layer: int) -> tuple[Tensor, Tensor]:
    """Read D1 and D2 as [H, P], float64, and refuse tables that overflowed."""
    tables = []
    for name in ("D1", "D2"):
        full_name = f"{PREFIX}.{layer}.attention.{name}"
        table = source.get(full_name)
        stored = str(table.dtype).removeprefix("torch.")
        if (bad := first_non_finite(table)) is not None:
            raise ModelLoadError(
                f"{full_name} holds a non-finite value at head {bad[1]}, position {bad[2]}: "
                f"the decay table has overflowed {stored}. Every answer longer than that would be "
                "NaN. Save the checkpoint in float32 again, with at most 2,794 positions."
            )
        tables.append(table.double().flatten(0, 1).squeeze(-1))
    return tables[0], tables[1]


def _fixed_decay(d1: Tensor, d2: Tensor) -> bool:
    """Whether D1[h, n] = γ_h^n and D2 = 1 / D1, up to the rounding of float32."""
    if d1.shape[1] < 2:
        return True
    rate = -_log_decay_rate(d1).double().exp()
    n = torch.arange(d1.shape[1], dtype=torch.float64)
    expected = (rate[:, None] * n).exp()
    ok = torch.isclose(d1, expected, rtol=1e-3, atol=1e-30)
    return bool((ok & torch.isclose(d2 * expected, torch.ones_like(d2), rtol=1e-3)).all())


def _log_decay_rate(d1: Tensor) -> Tensor:
    """a of log γ = -exp(a) from a table of γ^n, shape [H], float32."""
    if d1.shape[1] < 2:
        return default_log_decay_rate(d1.shape[0]).float()
    return (-(d1[:, 1] / d1[:, 0]).clamp(1e-30, 1 - 1e-12).log()).log().float()
