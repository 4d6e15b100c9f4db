"""A model folder with random weights and a made-up tokenizer, for what can only serve a folder."""

import itertools
import string
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from dijiang_runtime.bench.random_models import random_packed_weights
from dijiang_runtime.models.config import ModelConfig
from dijiang_runtime.models.loader import random_model, save_model
from dijiang_runtime.models.packed_folder import packed_writer
from dijiang_runtime.ops.cpu.packed import WeightFormat


def write_random_folder(config: ModelConfig, folder: Path) -> None:
    """Write a model that `dijiang serve` takes. Every token stands for a few letters."""
    save_model(random_model(config), folder)
    made_up_tokenizer(config.vocab_size).save(str(folder / "tokenizer.json"))


def write_random_packed_folder(
    config: ModelConfig, folder: Path, weight_format: WeightFormat
) -> None:
    """The same, packed, one matrix at a time: the model may be larger than memory."""
    writer = packed_writer(folder, config, weight_format)
    for name, tensor in random_packed_weights(config, weight_format):
        writer.write(name, tensor)
    made_up_tokenizer(config.vocab_size).save(str(folder / "tokenizer.json"))


def made_up_tokenizer(vocab_size: int) -> tokenizers.Tokenizer:
    """A byte-level tokenizer of so many tokens: the bytes, and then words of up to four letters.

    One in forty has a quote, as in real vocabularies: no place in JSON lets all tokens in.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = (
        "".join(letters)
        for length in (2, 3, 4)
        for letters in itertools.product("Ġ" + string.ascii_lowercase, repeat=length)
    )
    quoted = (word + '"' * (i % 40 == 0) for i, word in enumerate(words))
    spelled = itertools.islice(itertools.chain(alphabet, quoted), vocab_size)
    model = models.BPE(vocab={token: i for i, token in enumerate(spelled)}, merges=[])
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
