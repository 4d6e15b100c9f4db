"""The LLaMA family: LLaMA, TinyLlama, Mistral, Qwen2 and Qwen3 share one layout."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from dijiang_runtime.models.config import ModelConfig, Preset
from dijiang_runtime.models.hf_config import (
    activation,
    integer,
    rope_scaling,
    rope_value,
    token_ids,
)
from dijiang_runtime.models.presets import attention_config
from dijiang_runtime.models.weights import TensorSource

_MODULES = {
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "attention.q_proj": "self_attn.q_proj",
    "attention.k_proj": "self_attn.k_proj",
    "attention.v_proj": "self_attn.v_proj",
    "attention.o_proj": "self_attn.o_proj",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}


def config_from_parent(hf: Mapping[str, Any], preset: Preset) -> ModelConfig:
    """Describe the DiJiang model that a vanilla LLaMA-family `config.json` becomes."""
    hidden, heads = integer(hf, "hidden_size"), integer(hf, "num_attention_heads")
    head_dim = hf.get("head_dim") or hidden // heads
    attention_bias = bool(hf.get("attention_bias", False))
    return ModelConfig(
        family="llama",
        preset=preset,
        vocab_size=integer(hf, "vocab_size"),
        hidden_size=hidden,
        intermediate_size=integer(hf, "intermediate_size"),
        num_layers=integer(hf, "num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=hf.get("num_key_value_heads") or heads,
        head_dim=head_dim,
        max_position_embeddings=integer(hf, "max_position_embeddings"),
        attention=attention_config(preset, head_dim),
        norm="rmsnorm",
        norm_eps=float(hf.get("rms_norm_eps", 1e-6)),
        activation=activation(str(hf.get("hidden_act", "silu"))),
        gated_mlp=True,
        mlp_bias=bool(hf.get("mlp_bias", False)),
        # Qwen2 has these biases without saying so in its config.
        qkv_bias=attention_bias or hf.get("model_type") == "qwen2",
        out_bias=attention_bias,
        qk_norm=hf.get("model_type") == "qwen3",
        rotary_dim=head_dim,
        rope_theta=float(rope_value(hf, "rope_theta", 10000.0)),
        rope_scaling=rope_scaling(hf),
        tie_word_embeddings=bool(hf.get("tie_word_embeddings", False)),
        bos_token_id=hf.get("bos_token_id"),
        eos_token_ids=token_ids(hf.get("eos_token_id")),
    )


def parent_weights(config: ModelConfig, source: TensorSource) -> Iterator[tuple[str, Tensor]]:
    """Yield what is copied from a vanilla checkpoint, under this project's names."""
    yield "embed_tokens.weight", source.get("model.embed_tokens.weight")
    for i in range(config.num_layers):
        for ours, theirs in _MODULES.items():
            for part in ("weight", "bias"):
                if part == "weight" or _has_bias(config, ours):
                    tensor = source.get(f"model.layers.{i}.{theirs}.{part}")
                    yield f"layers.{i}.{ours}.{part}", tensor
        for name in ("q_norm", "k_norm") if config.qk_norm else ():
            weight = source.get(f"model.layers.{i}.self_attn.{name}.weight")
            yield f"layers.{i}.attention.{name}.weight", weight
    yield "final_norm.weight", source.get("model.norm.weight")
    if not config.tie_word_embeddings:
        yield "lm_head.weight", source.get("lm_head.weight")


def _has_bias(config: ModelConfig, module: str) -> bool:
    if module in ("attention_norm", "mlp_norm"):
        return False
    if module.startswith("mlp."):
        return config.mlp_bias
    return config.out_bias if module == "attention.o_proj" else config.qkv_bias
