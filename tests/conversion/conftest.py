"""A small text, a tokenizer trained on it, and random vanilla parents of each family."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
)

from dijiang_runtime.conversion.tokenizer import train_tokenizer

ANIMALS = ["fox", "hen", "cat", "dog", "owl", "bear", "frog", "duck"]
PLACES = ["barn", "lake", "hill", "wood", "farm"]
VOCAB_SIZE = 300


@pytest.fixture(scope="session")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty one-paragraph stories with separator lines between them."""
    path = tmp_path_factory.mktemp("text") / "stories.txt"
    texts = [
        f"Once upon a time a {animal} lived at the {place}. The {animal} liked it.\nThe end.\n"
        for animal in ANIMALS
        for place in PLACES
    ]
    path.write_text("<|endoftext|>\n".join(texts))
    return path


@pytest.fixture(scope="session")
def tokenizer_folder(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer([stories], folder, vocab_size=VOCAB_SIZE)
    return folder


def _neox() -> PreTrainedModel:
    return GPTNeoXForCausalLM(
        GPTNeoXConfig(**_SIZES, num_attention_heads=4, intermediate_size=64, hidden_size=32)
    )


def _llama() -> PreTrainedModel:
    return LlamaForCausalLM(
        LlamaConfig(
            **_SIZES,
            hidden_size=32,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=48,
            tie_word_embeddings=True,
        )
    )


def _opt() -> PreTrainedModel:
    return OPTForCausalLM(
        OPTConfig(
            **_SIZES, hidden_size=32, num_attention_heads=4, ffn_dim=64, word_embed_proj_dim=32
        )
    )


_SIZES = {
    "vocab_size": VOCAB_SIZE,
    "num_hidden_layers": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": None,
}
PARENTS: dict[str, Callable[[], PreTrainedModel]] = {
    "gpt_neox": _neox,
    "llama": _llama,
    "opt": _opt,
}


@pytest.fixture(scope="session")
def parents(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for each family: random weights, far from any default, so that attention matters."""
    folders = {}
    for family, build in PARENTS.items():
        torch.manual_seed(7)
        model = build()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        folder = tmp_path_factory.mktemp(family)
        model.save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / name).write_bytes((tokenizer_folder / name).read_bytes())
        folders[family] = folder
    return folders
