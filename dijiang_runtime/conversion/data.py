"""Text as training data: packed token ids, and batches that depend on the step alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from dijiang_runtime.conversion.errors import DataError
from dijiang_runtime.conversion.sources import read_documents

_DOCUMENTS_PER_BATCH = 1024


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a model folder, in the `tokenizers` library's own format.

    Raises:
        DataError: the folder has no readable `tokenizer.json`.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise DataError(f"{folder} has no tokenizer.json; a fast tokenizer is required.")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as exc:  # the library raises plain Exception for a malformed file
        raise DataError(f"Cannot read {path}: {exc}.") from exc


def pack_documents(
    sources: Sequence[str | Path],
    tokenizer: Tokenizer,
    *,
    eos_token_id: int | None,
    text_column: str = "text",
    max_tokens: int | None = None,
) -> np.ndarray:
    """Tokenise every document and join them into one array of ids, int32 `[num_tokens]`.

    A tokenizer that starts each text with its BOS token has separated the documents by that;
    otherwise `eos_token_id` is appended to each.

    Args:
        sources: What `read_documents` takes.
        max_tokens: Stop reading when there are so many, and drop what is over.

    Raises:
        DataError: a source cannot be read, or none of them holds text.
    """
    starts_with_special = bool(tokenizer.encode("").ids)
    tail = [] if starts_with_special or eos_token_id is None else [eos_token_id]
    parts: list[np.ndarray] = []
    num_tokens = 0
    documents = (text for name in sources for text in read_documents(name, text_column=text_column))
    for batch in _batched(documents, _DOCUMENTS_PER_BATCH):
        for encoding in tokenizer.encode_batch(batch):
            parts.append(np.asarray(encoding.ids + tail, dtype=np.int32))
            num_tokens += len(parts[-1])
        if max_tokens is not None and num_tokens >= max_tokens:
            break
    if not parts:
        raise DataError(f"No text in {', '.join(str(name) for name in sources)}.")
    return np.concatenate(parts)[:max_tokens]


def _batched(documents: Iterator[str], size: int) -> Iterator[list[str]]:
    batch: list[str] = []
    for document in documents:
        batch.append(document)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


@dataclass(frozen=True)
class TrainingBatches:
    """Batches of `[batch_size, context + 1]` ids: a pure function of seed and step.

    An epoch cuts the text into blocks at an offset of its own and shuffles them, so a training
    that is interrupted and resumed sees exactly what it would have seen.
    """

    token_ids: np.ndarray
    context: int
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        if self.steps_per_epoch < 1:
            needed = (self.batch_size + 1) * self.context + 1
            raise DataError(
                f"The text has {len(self.token_ids)} tokens, but one batch of {self.batch_size} x "
                f"{self.context} needs {needed}. Lower the batch size or the context."
            )

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.context

    @property
    def steps_per_epoch(self) -> int:
        # One block is given up to the offset, so that every epoch has the same number.
        return ((len(self.token_ids) - 1) // self.context - 1) // self.batch_size

    def at(self, step: int) -> Tensor:
        """The batch of this step, int64."""
        epoch, index = divmod(step, self.steps_per_epoch)
        rng = np.random.default_rng([self.seed, epoch])
        offset = int(rng.integers(self.context))
        num_blocks = (len(self.token_ids) - 1) // self.context - 1
        blocks = rng.permutation(num_blocks)[index * self.batch_size :][: self.batch_size]
        starts = offset + blocks * self.context
        rows = self.token_ids[starts[:, None] + np.arange(self.context + 1)]
        return torch.from_numpy(rows.astype(np.int64))


def evaluation_blocks(token_ids: np.ndarray, context: int) -> Tensor:
    """The text cut into consecutive blocks, int64 `[num_blocks, context + 1]`.

    Neighbours share one token, so every token but the first is predicted once. A tail shorter
    than a block is dropped, unless it is all there is.

    Raises:
        DataError: fewer than two tokens.
    """
    if len(token_ids) < 2:
        raise DataError("Evaluation needs a text of at least two tokens.")
    context = min(context, len(token_ids) - 1)
    num_blocks = (len(token_ids) - 1) // context
    index = np.arange(num_blocks)[:, None] * context + np.arange(context + 1)
    return torch.from_numpy(token_ids[index].astype(np.int64))
