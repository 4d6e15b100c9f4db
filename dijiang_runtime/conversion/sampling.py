"""Let a pretrained parent write training text, where a file holds too little of it."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dijiang_runtime.conversion.data import load_tokenizer
from dijiang_runtime.conversion.errors import ConversionError
from dijiang_runtime.conversion.sources import SEPARATOR

MAX_EMPTY_ATTEMPTS = 4096
"""Texts that a parent may begin before it has written one that is long enough."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingOptions:
    """How much text is written, and how daring it is."""

    num_bytes: int | None = 5_000_000
    """Stop after the batch that reaches this size."""
    num_tokens: int | None = None
    """Or this many tokens."""
    max_length: int | None = None
    """Tokens of a row. Default: the parent's positions."""
    keep_unfinished: bool = False
    """Keep the document that the end of a row cuts off."""
    batch_size: int = 256
    temperature: float = 0.8
    top_p: float = 0.95
    min_characters: int = 160
    """Shorter documents are dropped."""
    seed: int = 0

    def is_enough(self, num_bytes: int, num_tokens: int) -> bool:
        by_bytes = self.num_bytes is not None and num_bytes >= self.num_bytes
        return by_bytes or (self.num_tokens is not None and num_tokens >= self.num_tokens)


def sample_documents(
    parent: Path, out: Path, options: SamplingOptions, report: Callable[[int], None] | None = None
) -> int:
    """Write documents sampled from a vanilla parent to `out`; return their number.

    Each row starts with the parent's BOS token and runs to its last position. BOS or EOS ends a
    document; the one that the last position cuts off is dropped, unless it is wanted.

    Args:
        report: called with the bytes written so far after each batch.

    Raises:
        ConversionError: the parent has no BOS token to start from, or writes nothing.
    """
    from dijiang_runtime.conversion.vanilla import load_vanilla

    model = load_vanilla(parent).model
    tokenizer = load_tokenizer(parent)
    config = model.config
    if config.bos_token_id is None:
        raise ConversionError("The parent has no BOS token, so it cannot start a document.")
    generator = torch.Generator().manual_seed(options.seed)
    ends = {config.bos_token_id, config.eos_token_id}
    num_bytes = num_tokens = num_documents = num_attempts = 0
    with out.open("w", encoding="utf-8") as file:
        while not options.is_enough(num_bytes, num_tokens):
            rows = _sample_batch(model, options, generator)
            for ids in _documents(rows, ends, keep_unfinished=options.keep_unfinished):
                text = tokenizer.decode(ids).strip()
                if len(text) < options.min_characters:
                    continue
                num_bytes += file.write(f"{text}\n{SEPARATOR}\n")
                num_documents += 1
                num_tokens += len(ids)
            num_attempts += options.batch_size
            if num_documents == 0 and num_attempts >= MAX_EMPTY_ATTEMPTS:
                raise ConversionError(
                    f"The parent wrote no document of {options.min_characters} characters in "
                    f"{num_attempts} attempts."
                )
            if report is not None:
                report(num_bytes)
    return num_documents


@torch.inference_mode()
def _sample_batch(
    model: Any, options: SamplingOptions, generator: torch.Generator
) -> list[list[int]]:
    from transformers import DynamicCache

    config = model.config
    cache = DynamicCache(config=config)
    ids = torch.full((options.batch_size, 1), config.bos_token_id)
    columns = []
    length = min(options.max_length or math.inf, config.max_position_embeddings)
    for _ in range(int(length) - 1):
        output = model(input_ids=ids, past_key_values=cache, use_cache=True)
        ids = _sample(output.logits[:, -1], options, generator)
        columns.append(ids)
    return torch.cat(columns, dim=1).tolist()


def _sample(logits: Tensor, options: SamplingOptions, generator: torch.Generator) -> Tensor:
    """One id per row of `logits [B, V]`, from the smallest set that holds `top_p`."""
    probs, order = torch.softmax(logits / options.temperature, -1).sort(-1, descending=True)
    nucleus = probs * (probs.cumsum(-1) - probs < options.top_p)
    return order.gather(-1, torch.multinomial(nucleus, 1, generator=generator))


def _documents(
    rows: list[list[int]], ends: set[int | None], *, keep_unfinished: bool
) -> Iterator[list[int]]:
    """The documents of each row: what lies before an end token, and at wish the rest."""
    for row in rows:
        start = 0
        for index, token_id in enumerate(row):
            if token_id in ends:
                yield row[start:index]
                start = index + 1
        if keep_unfinished:
            yield row[start:]
