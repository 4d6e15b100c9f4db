"""Parent and children side by side on the same text: loss by position, recall by distance."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dijiang_runtime.conversion.data import load_tokenizer, pack_documents
from dijiang_runtime.conversion.errors import DataError
from dijiang_runtime.conversion.evaluate import EvaluateOptions, Evaluation, evaluate_model
from dijiang_runtime.conversion.recall import NEEDLE_TOKENS, Recall, RecallOptions, measure_recall
from dijiang_runtime.conversion.trainable import TrainableModel, load_model_folder

LONGEST_CONTEXT = 2048
"""How far models are compared where no context is named and the parent has more positions."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareOptions:
    """What is measured of every model."""

    context: int | None = None
    """None: as many tokens as the parent has positions, at most `LONGEST_CONTEXT`."""
    max_tokens: int | None = 65_536
    recall: RecallOptions | None = None
    """None: recall by distances of 16, 32, 64, ... as far as the context reaches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One model's figures."""

    name: str
    """Of its folder."""
    evaluation: Evaluation
    recall: tuple[Recall, ...]


def compare(
    folders: Sequence[Path],
    data: Sequence[str | Path],
    options: CompareOptions,
    progress: Progress | None = None,
) -> list[Measured]:
    """Measure all models on the same text, the parent first.

    Args:
        progress: called with the model's name, what is done of it, and the whole.

    Raises:
        DataError, ConversionError, ModelLoadError: unusable text, tokenizers or models.
    """
    parent = load_model_folder(folders[0])
    ids = _token_ids(folders, data, parent.eos_token_id)
    context = options.context or min(parent.max_length or LONGEST_CONTEXT, LONGEST_CONTEXT)
    recall = options.recall or RecallOptions(distances=_distances(min(context, len(ids) // 2)))
    evaluation = EvaluateOptions(context=context, max_tokens=options.max_tokens)
    measured = []
    for index, folder in enumerate(folders):
        name = folder.resolve().name
        model = parent if index == 0 else load_model_folder(folder)
        measured.append(_measure(name, model, ids, evaluation, recall, progress))
    return measured


def _measure(
    name: str,
    model: TrainableModel,
    ids: np.ndarray,
    evaluation: EvaluateOptions,
    recall: RecallOptions,
    progress: Progress | None,
) -> Measured:
    def advance(done: int, total: int) -> None:
        if progress is not None:
            progress(name, done, total)

    return Measured(
        name=name,
        evaluation=evaluate_model(model, ids, evaluation, advance),
        recall=tuple(measure_recall(model, ids, recall)) if recall.distances else (),
    )


def _token_ids(
    folders: Sequence[Path], data: Sequence[str | Path], eos_token_id: int | None
) -> np.ndarray:
    """The text as every model reads it."""
    ids = pack_documents(data, load_tokenizer(folders[0]), eos_token_id=eos_token_id)
    for folder in folders[1:]:
        others = pack_documents(data, load_tokenizer(folder), eos_token_id=eos_token_id)
        if not np.array_equal(ids, others):
            raise DataError(
                f"{folder.name} reads the text as other tokens than {folders[0].name}, so their "
                "losses cannot be compared. Give both the same tokenizer."
            )
    return ids


def _distances(context: int) -> tuple[int, ...]:
    """16, 32, 64, ... and the farthest that the context holds with both needles."""
    farthest = context - 2 * NEEDLE_TOKENS
    doubling = [16 * 2**i for i in range(16) if 16 * 2**i < farthest]
    return (*doubling, farthest) if farthest >= 16 else ()
