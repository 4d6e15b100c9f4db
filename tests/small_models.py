"""Small models of random weights, for every way in which a family builds its layers."""

from collections.abc import Mapping
from dataclasses import replace

import torch

from dijiang_runtime.models.config import AttentionConfig, ModelConfig
from dijiang_runtime.models.decoder import Decoder
from dijiang_runtime.models.presets import attention_config

Fields = Mapping[str, object]
"""Some fields of a `ModelConfig`."""

HEAD_DIM = 16
VOCAB_SIZE = 384
"""More rows than the tests' tokenizer has tokens, as in published models."""

FAMILIES: dict[str, Fields] = {
    "gpt_neox": {},
    "official": {
        "preset": "official",
        "attention": AttentionConfig(num_features=HEAD_DIM, num_groups=HEAD_DIM),
    },
    "window": {
        "preset": "dijiang+window",
        "attention": attention_config("dijiang+window", HEAD_DIM),
    },
    "decay-tables": {
        "preset": "official",
        "attention": AttentionConfig(num_features=HEAD_DIM, num_groups=HEAD_DIM, decay_tables=True),
        "max_position_embeddings": 512,
    },
    "llama": {
        "family": "llama",
        "parallel_residual": False,
        "norm": "rmsnorm",
        "activation": "silu",
        "gated_mlp": True,
        "mlp_bias": False,
        "qkv_bias": False,
        "out_bias": False,
        "num_kv_heads": 2,
        "rotary_dim": 16,
        "tie_word_embeddings": True,
    },
    "opt": {
        "family": "opt",
        "parallel_residual": False,
        "rotary_dim": 0,
        "activation": "relu",
        "learned_positions": True,
        "max_position_embeddings": 512,
        "query_scale": 0.25,
    },
    # No size is a multiple of a vector register.
    "odd-sizes": {
        "vocab_size": 387,
        "hidden_size": 66,
        "intermediate_size": 131,
        "num_heads": 3,
        "num_kv_heads": 3,
        "activation": "gelu_tanh",
    },
}
FAMILIES["wide-sinks"] = {
    **FAMILIES["llama"],
    "preset": "dijiang+window",
    # Neither is a multiple of a vector register, and there are more sinks than fit into one.
    "attention": replace(attention_config("dijiang+window", HEAD_DIM), window=27, sinks=18),
}
FAMILIES["qwen3"] = {**FAMILIES["llama"], "qk_norm": True}
FAMILIES["opt-350m"] = {
    **FAMILIES["opt"],
    "norm_first": False,
    "final_norm": False,
    "embedding_dim": 32,
}


def small_config(**changes: object) -> ModelConfig:
    """Two layers of GPT-NeoX with the default preset, some of its fields changed."""
    fields: dict[str, object] = {
        "family": "gpt_neox",
        "preset": "dijiang",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 4,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": 256,
        "attention": attention_config("dijiang", HEAD_DIM),
        "parallel_residual": True,
        "rotary_dim": 4,
        "eos_token_ids": (0,),
    }
    return ModelConfig(**{**fields, **changes})  # type: ignore[arg-type]


def make_decoder(**changes: object) -> Decoder:
    """A decoder in which every matrix, bias and norm has an effect of its own on the logits."""
    torch.manual_seed(0)
    model = Decoder(small_config(**changes))
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.2)
        elif name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
        elif name.endswith("norm.weight"):
            torch.nn.init.normal_(parameter, mean=1.0, std=0.2)
    return model.eval().requires_grad_(False)
