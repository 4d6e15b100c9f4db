"""A model folder with random weights and a made-up tokenizer, for what can only serve a folder."""

import dataclasses
import itertools
import re
import string
from pathlib import Path

import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers

from dijiang_runtime.models.config import ModelConfig
from dijiang_runtime.models.decoder import Decoder
from dijiang_runtime.models.loader import random_model, save_model
from dijiang_runtime.models.packed import PackedLinear
from dijiang_runtime.models.packed_folder import empty_packed, packed_writer, write_matrix
from dijiang_runtime.ops.cpu.packed import WeightFormat, pack


def write_random_folder(config: ModelConfig, folder: Path) -> None:
    """Write a model that `dijiang serve` takes. Every token stands for a few letters."""
    save_model(random_model(config), folder)
    made_up_tokenizer(config.vocab_size).save(str(folder / "tokenizer.json"))


def write_random_packed_folder(
    config: ModelConfig, folder: Path, weight_format: WeightFormat
) -> None:
    """The same, packed, one matrix at a time: the model may be larger than memory."""
    generator = torch.Generator().manual_seed(0)
    writer = packed_writer(folder, config, weight_format)
    small = empty_packed(config, weight_format)
    for path, module in small.named_modules():
        if not isinstance(module, PackedLinear):
            continue
        weight = torch.randn(module.out_features, module.in_features, generator=generator)
        bias = None if module.bias is None else torch.zeros(module.out_features)
        write_matrix(writer, path, pack(weight.mul_(0.02), bias, weight_format))
    # What is left is made by a model of one layer: all layers have the same.
    one = Decoder(dataclasses.replace(config, num_layers=1)).state_dict()
    for name in sorted(writer.missing):
        writer.write(name, one[re.sub(r"^layers\.\d+\.", "layers.0.", name)])
    made_up_tokenizer(config.vocab_size).save(str(folder / "tokenizer.json"))


def made_up_tokenizer(vocab_size: int) -> tokenizers.Tokenizer:
    """A byte-level tokenizer of so many tokens: the bytes, and then words of up to four letters."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = (
        "".join(letters)
        for length in (2, 3, 4)
        for letters in itertools.product("Ġ" + string.ascii_lowercase, repeat=length)
    )
    spelled = itertools.islice(itertools.chain(alphabet, words), vocab_size)
    model = models.BPE(vocab={token: i for i, token in enumerate(spelled)}, merges=[])
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
