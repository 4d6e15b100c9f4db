"""Fixtures that every part of the suite may use."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

# One thread each for this process and for the engines it starts: several of them spinning on a few
# cores take many times as long. Tests that need more set it themselves.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

if not torch.cuda.is_available():
    # The kernels for GPUs run in Triton's interpreter, on the CPU. Read when they are defined.
    os.environ["TRITON_INTERPRET"] = "1"

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from dijiang_runtime.models.decoder import Decoder
from dijiang_runtime.models.loader import save_model
from tests.small_models import small_config

EOS = "<|endoftext|>"
_TEXT = ["the quick brown fox jumps over the lazy dog and then the dog sleeps"]


def pytest_configure() -> None:
    # A shell starts its background jobs with SIGINT ignored, and their children inherit that; what
    # is tested for its Ctrl-C must not.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def make_tokenizer(vocab_size: int = 320) -> Tokenizer:
    """A byte-level tokenizer: every string has an encoding, and the specials come first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(EOS, special=True), AddedToken("<|pad|>", special=True)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXT, trainer)
    return tokenizer


def save_tiny_model(folder: Path, *, seed: int = 0, scale: float = 0.3, **changes: object) -> Path:
    """Write a model folder: two layers of random weights and a byte-level tokenizer."""
    tokenizer = make_tokenizer()
    eos_token_ids = (tokenizer.token_to_id(EOS),)
    torch.manual_seed(seed)
    model = Decoder(small_config(**{"eos_token_ids": eos_token_ids, **changes}))
    # As initialised, all logits would be nearly equal and every answer a single token.
    for name, parameter in model.named_parameters():
        if name in ("embed_tokens.weight", "lm_head.weight"):
            torch.nn.init.normal_(parameter, std=scale)
    save_model(model, folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": EOS, "bos_token": None}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random DiJiang model that loads in milliseconds."""
    return save_tiny_model(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture(scope="session")
def endless_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model without an end of text: every answer has `max_tokens` tokens."""
    folder = tmp_path_factory.mktemp("endless") / "tiny"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "eos_token_ids": []}))
    (folder / "tokenizer_config.json").write_text("{}")
    return folder


@pytest.fixture(scope="session")
def make_tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Like `tiny_model`, with some fields of its `ModelConfig` changed."""

    def make(**changes: object) -> Path:
        return save_tiny_model(tmp_path_factory.mktemp("tiny-model"), **changes)

    return make
