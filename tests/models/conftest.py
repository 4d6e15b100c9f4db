"""Random vanilla parents of every family."""

from pathlib import Path

import pytest
import torch
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

COMMON = {"vocab_size": 97, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}


def neox(heads: int, dim: int, **options) -> PreTrainedModel:
    hidden = heads * dim
    return GPTNeoXForCausalLM(
        GPTNeoXConfig(
            **COMMON,
            hidden_size=hidden,
            num_attention_heads=heads,
            num_hidden_layers=2 if hidden < 100 else 1,
            intermediate_size=96,
            max_position_embeddings=512,
            **options,
        )
    )


def llama_like(config_class, model_class, **options) -> PreTrainedModel:
    settings = {
        "hidden_size": 48,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "num_hidden_layers": 2,
        "intermediate_size": 88,
        "max_position_embeddings": 512,
    }
    return model_class(config_class(**COMMON, **{**settings, **options}))


def opt(**options) -> PreTrainedModel:
    settings = {
        "hidden_size": 48,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "ffn_dim": 96,
        "max_position_embeddings": 512,
        "dropout": 0.0,
        "word_embed_proj_dim": 48,
    }
    return OPTForCausalLM(OPTConfig(**{**COMMON, "pad_token_id": 1}, **{**settings, **options}))


LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

PARENTS = {
    "neox-8x8": lambda: neox(8, 8),
    "neox-12x64-straddling-groups": lambda: neox(12, 64),
    "neox-8x20-straddling-groups": lambda: neox(8, 20),  # 32 / 80 of the 2.8B shape, reduced
    "neox-sequential": lambda: neox(4, 16, use_parallel_residual=False),
    "llama-grouped-queries": lambda: llama_like(LlamaConfig, LlamaForCausalLM),
    "llama-tied": lambda: llama_like(
        LlamaConfig, LlamaForCausalLM, tie_word_embeddings=True, num_key_value_heads=6
    ),
    "llama3-rope": lambda: llama_like(
        LlamaConfig, LlamaForCausalLM, rope_parameters=LLAMA3_ROPE, head_dim=16
    ),
    "mistral": lambda: llama_like(MistralConfig, MistralForCausalLM, sliding_window=None),
    "qwen2-biases": lambda: llama_like(Qwen2Config, Qwen2ForCausalLM),
    "qwen3-normalised-queries-and-keys": lambda: llama_like(
        Qwen3Config, Qwen3ForCausalLM, head_dim=16
    ),
    "opt-pre-norm": opt,
    "opt-350m-post-norm-projections": lambda: opt(
        do_layer_norm_before=False, word_embed_proj_dim=24
    ),
}


@pytest.fixture(scope="module", params=list(PARENTS))
def parent(request: pytest.FixtureRequest) -> PreTrainedModel:
    """A vanilla model in float64 with every parameter random, norms and biases included."""
    torch.manual_seed(0)
    model = PARENTS[request.param]().double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.5 if parameter.dim() == 1 else parameter.shape[-1] ** -0.5
            parameter.copy_(scale * torch.randn_like(parameter))
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1.0)
    return model


@pytest.fixture
def folder(tmp_path: Path, parent: PreTrainedModel) -> Path:
    """The parent saved as transformers saves it."""
    parent.save_pretrained(tmp_path)
    return tmp_path
