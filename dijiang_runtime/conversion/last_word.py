"""LAMBADA-style: is the last word of a passage what the model would have written?"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from dijiang_runtime.conversion.data import load_tokenizer
from dijiang_runtime.conversion.errors import DataError
from dijiang_runtime.conversion.evaluate import AdvanceFn, context_for, perplexity
from dijiang_runtime.conversion.sources import read_documents
from dijiang_runtime.conversion.trainable import TrainableModel, load_model_folder

# The passage, its last word, and the punctuation after it, which is not asked for.
_LAST_WORD = re.compile(r"(.*\S)(\s+)(\w(?:[\w'’-]*\w)?)\W*", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class LastWordOptions:
    """Which passages, and how much of them is read."""

    context: int | None = None
    """Tokens that the model sees at most, the last of the passage. None: as in EvaluateOptions."""
    batch_size: int = 16
    max_passages: int | None = None
    text_column: str = "text"


@dataclass(frozen=True, slots=True, kw_only=True)
class LastWordAccuracy:
    """What `dijiang eval --task last-word` prints."""

    accuracy: float
    """Share of passages whose last word the model would have written, greedily."""
    perplexity: float
    """Of the last word: exp of the mean negative log-likelihood of the word as a whole."""
    num_passages: int
    num_skipped: int
    """Passages of a single word."""


@dataclass(frozen=True, slots=True)
class Passage:
    """Token ids, of which the last `num_target` are the last word's."""

    ids: tuple[int, ...]
    num_target: int


def split_passage(text: str, tokenizer: Tokenizer) -> Passage | None:
    """Tokenise a passage and find its last word; None if there is no more than that."""
    match = _LAST_WORD.fullmatch(text.strip())
    if match is None:
        return None
    before, space, word = match.groups()
    ids = tokenizer.encode(before + space + word).ids
    num_before = len(tokenizer.encode(before).ids)
    return Passage(tuple(ids), len(ids) - num_before) if len(ids) > num_before > 0 else None


def last_word_accuracy(
    folder: Path,
    data: Sequence[str | Path],
    options: LastWordOptions,
    progress: AdvanceFn | None = None,
) -> LastWordAccuracy:
    """How often a model, DiJiang or vanilla, would have written the last word of each document.

    Raises:
        DataError, ConversionError, ModelLoadError: unusable text, tokenizer or model.
    """
    model, tokenizer = load_model_folder(folder), load_tokenizer(folder)
    context = context_for(model, options.context)
    texts = islice(_documents(data, options), options.max_passages)
    found = [split_passage(text, tokenizer) for text in texts]
    passages = [p for p in found if p is not None]
    if not passages:
        raise DataError("No passage of the text has more than one word.")
    # Alike in length, so that little is padded.
    passages.sort(key=lambda p: len(p.ids))
    model.module.eval()
    correct, loss, done = 0, 0.0, 0
    for start in range(0, len(passages), options.batch_size):
        batch = passages[start : start + options.batch_size]
        for is_correct, nll in _judge(model, batch, context):
            correct += is_correct
            loss += nll
        done += len(batch)
        if progress is not None:
            progress(done, len(passages))
    return LastWordAccuracy(
        accuracy=correct / len(passages),
        perplexity=perplexity(loss / len(passages)),
        num_passages=len(passages),
        num_skipped=len(found) - len(passages),
    )


def _documents(data: Sequence[str | Path], options: LastWordOptions) -> Iterator[str]:
    return (t for name in data for t in read_documents(name, text_column=options.text_column))


@torch.no_grad()
def _judge(
    model: TrainableModel, passages: Sequence[Passage], context: int
) -> Iterator[tuple[bool, float]]:
    """Whether each last word is the likeliest, token by token, and its loss in nats."""
    kept = [p.ids[-context - 1 :] for p in passages]
    width = max(map(len, kept))
    # Padding comes after the tokens, where nothing looks at it.
    rows = torch.tensor([[*ids, *[0] * (width - len(ids))] for ids in kept])
    logits = model.logits(rows[:, :-1])
    for row, ids, passage in zip(logits, kept, passages, strict=True):
        num_target = min(passage.num_target, len(ids) - 1)
        target = torch.tensor(ids[-num_target:])
        of_word: Tensor = row[len(ids) - 1 - num_target : len(ids) - 1].float()
        nll = F.cross_entropy(of_word, target, reduction="sum").item()
        yield bool((of_word.argmax(-1) == target).all()), nll
