"""Train a byte-level BPE tokenizer on text files and save it as a model folder expects it."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from dijiang_runtime.conversion.errors import DataError
from dijiang_runtime.conversion.sources import SEPARATOR, read_documents

MIN_VOCAB_SIZE = 257
"""All bytes and the end-of-text token."""


def train_tokenizer(
    data: Sequence[str | Path], out: Path, *, vocab_size: int = 2048, max_length: int = 512
) -> Tokenizer:
    """Learn `vocab_size` byte-level BPE tokens from `data` and write the files to `out`.

    Any text can be encoded, since every byte is a token. The one special token, `<|endoftext|>`,
    starts every text, and so ends the one before it: it is BOS and EOS.

    Raises:
        DataError: unreadable or empty text, or a vocabulary smaller than the bytes.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise DataError(f"vocab_size is {vocab_size}; the bytes alone need {MIN_VOCAB_SIZE}.")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[SEPARATOR],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_documents(data), trainer)
    eos_id = tokenizer.token_to_id(SEPARATOR)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{SEPARATOR} $A",
        pair=f"{SEPARATOR} $A {SEPARATOR} $B",
        special_tokens=[(SEPARATOR, eos_id)],
    )
    _save(tokenizer, out, max_length)
    return tokenizer


def _documents(paths: Sequence[str | Path]) -> Iterator[str]:
    is_empty = True
    for path in paths:
        for document in read_documents(path):
            is_empty = False
            yield document
    if is_empty:
        raise DataError(f"No text in {', '.join(str(path) for path in paths)}.")


def _save(tokenizer: Tokenizer, out: Path, max_length: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SEPARATOR,
        "eos_token": SEPARATOR,
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
