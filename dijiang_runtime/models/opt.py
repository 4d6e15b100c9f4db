"""OPT: learned absolute positions, and for the 350M model norms after and a narrow embedding."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from dijiang_runtime.errors import UnsupportedModelError
from dijiang_runtime.models.config import ModelConfig, Preset
from dijiang_runtime.models.hf_config import activation, integer, token_ids
from dijiang_runtime.models.presets import attention_config
from dijiang_runtime.models.weights import TensorSource

_MODULES = {
    "attention_norm": "self_attn_layer_norm",
    "mlp_norm": "final_layer_norm",
    "attention.q_proj": "self_attn.q_proj",
    "attention.k_proj": "self_attn.k_proj",
    "attention.v_proj": "self_attn.v_proj",
    "attention.o_proj": "self_attn.out_proj",
    "mlp.up": "fc1",
    "mlp.down": "fc2",
}


def config_from_parent(hf: Mapping[str, Any], preset: Preset) -> ModelConfig:
    """Describe the DiJiang model that a vanilla OPT `config.json` becomes."""
    if not hf.get("layer_norm_elementwise_affine", True):
        raise UnsupportedModelError("OPT without affine layer norms is not implemented.")
    hidden, heads = integer(hf, "hidden_size"), integer(hf, "num_attention_heads")
    head_dim = hidden // heads
    width = hf.get("word_embed_proj_dim") or hidden
    norm_first = bool(hf.get("do_layer_norm_before", True))
    bias = bool(hf.get("enable_bias", True))
    return ModelConfig(
        family="opt",
        preset=preset,
        vocab_size=integer(hf, "vocab_size"),
        hidden_size=hidden,
        intermediate_size=integer(hf, "ffn_dim"),
        num_layers=integer(hf, "num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=head_dim,
        max_position_embeddings=integer(hf, "max_position_embeddings"),
        attention=attention_config(preset, head_dim),
        norm_first=norm_first,
        final_norm=norm_first and not hf.get("_remove_final_layer_norm", False),
        activation=activation(str(hf.get("activation_function", "relu"))),
        mlp_bias=bias,
        qkv_bias=bias,
        out_bias=bias,
        learned_positions=True,
        embedding_dim=0 if width == hidden else width,
        query_scale=head_dim**-0.5,
        tie_word_embeddings=bool(hf.get("tie_word_embeddings", True)),
        bos_token_id=hf.get("bos_token_id"),
        eos_token_ids=token_ids(hf.get("eos_token_id")),
    )


def parent_weights(config: ModelConfig, source: TensorSource) -> Iterator[tuple[str, Tensor]]:
    """Yield what is copied from a vanilla checkpoint, under this project's names."""
    prefix = "model.decoder" if "model.decoder.embed_tokens.weight" in source.names else "decoder"
    yield "embed_tokens.weight", source.get(f"{prefix}.embed_tokens.weight")
    yield "embed_positions.weight", source.get(f"{prefix}.embed_positions.weight")
    if config.embedding_dim:
        for name in ("project_in", "project_out"):
            yield f"{name}.weight", source.get(f"{prefix}.{name}.weight")
    for i in range(config.num_layers):
        for ours, theirs in _MODULES.items():
            for part in ("weight", "bias"):
                if part == "weight" or config.mlp_bias or ours.endswith("_norm"):
                    tensor = source.get(f"{prefix}.layers.{i}.{theirs}.{part}")
                    yield f"layers.{i}.{ours}.{part}", tensor
    if config.final_norm:
        for part in ("weight", "bias"):
            yield f"final_norm.{part}", source.get(f"{prefix}.final_layer_norm.{part}")
    if not config.tie_word_embeddings:
        yield "lm_head.weight", source.get("lm_head.weight")
