"""Recall by distance: can a model still say what it has read so many tokens ago?

A needle, a few tokens of the text, is followed by other text, and then comes again: given the
first half of the repetition, how well is the second half predicted? The control is the same with
another needle, and says how much of it can be guessed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dijiang_runtime.conversion.data import load_tokenizer, pack_documents
from dijiang_runtime.conversion.errors import DataError
from dijiang_runtime.conversion.evaluate import AdvanceFn, check_length
from dijiang_runtime.conversion.trainable import TrainableModel, load_model_folder

NEEDLE_TOKENS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class RecallOptions:
    """What is hidden, how far back, and how often."""

    distances: tuple[int, ...] = (16, 32, 64, 128, 256)
    """Tokens between the needle and its repetition."""
    needle: int = NEEDLE_TOKENS
    """Its tokens; the second half is asked for."""
    count: int = 200
    """Needles at each distance."""
    batch_size: int = 16
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Recall:
    """How well the needles of one distance are repeated."""

    distance: int
    accuracy: float
    """Share of the tokens asked for that are the likeliest ones."""
    control_accuracy: float
    """The same without the needle."""
    loss: float
    """Of the tokens asked for, nats."""
    control_loss: float

    @property
    def gain(self) -> float:
        """Nats a token that having read the needle is worth; 0 if it has been forgotten."""
        return self.control_loss - self.loss


def recall_of_folder(
    folder: Path,
    data: Sequence[str | Path],
    options: RecallOptions,
    progress: AdvanceFn | None = None,
) -> list[Recall]:
    """`measure_recall` of a model folder, DiJiang or vanilla, on text files."""
    model = load_model_folder(folder)
    ids = pack_documents(data, load_tokenizer(folder), eos_token_id=model.eos_token_id)
    return measure_recall(model, ids, options, progress)


def measure_recall(
    model: TrainableModel,
    token_ids: np.ndarray,
    options: RecallOptions,
    progress: AdvanceFn | None = None,
) -> list[Recall]:
    """Measure recall at every distance, with needles and text from `token_ids`.

    Raises:
        DataError: the text is too short, or the model has too few positions.
    """
    check_length(model, max(options.distances) + 2 * options.needle)
    model.module.eval()
    found = []
    for index, distance in enumerate(options.distances):
        seen, control = recall_sequences(token_ids, distance, options)
        accuracy, loss = _second_halves(model, seen, options)
        control_accuracy, control_loss = _second_halves(model, control, options)
        found.append(
            Recall(
                distance=distance,
                accuracy=accuracy,
                control_accuracy=control_accuracy,
                loss=loss,
                control_loss=control_loss,
            )
        )
        if progress is not None:
            progress(index + 1, len(options.distances))
    return found


def recall_sequences(
    token_ids: np.ndarray, distance: int, options: RecallOptions
) -> tuple[Tensor, Tensor]:
    """Sequences with the needle and with another in its place, int64 `[count, length]` each.

    The same seed gives the same needles at every distance.
    """
    length = distance + options.needle
    if len(token_ids) < length + options.needle:
        raise DataError(
            f"The text has {len(token_ids):,} tokens, too few for a distance of {distance:,}."
        )
    needles, others, text = (
        _passages(token_ids, size, options.count, [options.seed, stream])
        for stream, size in enumerate((options.needle, options.needle, distance))
    )
    seen = np.concatenate([needles, text, needles], axis=1)
    control = np.concatenate([others, text, needles], axis=1)
    return torch.from_numpy(seen), torch.from_numpy(control)


def _passages(token_ids: np.ndarray, size: int, count: int, seed: Sequence[int]) -> np.ndarray:
    # Places as fractions of the text, so that they are the same for every size.
    places = np.random.default_rng(seed).random(count)
    starts = (places * (len(token_ids) - size)).astype(np.int64)
    return token_ids[starts[:, None] + np.arange(size)].astype(np.int64)


@torch.no_grad()
def _second_halves(
    model: TrainableModel, sequences: Tensor, options: RecallOptions
) -> tuple[float, float]:
    """Accuracy and loss of the second half of what comes again."""
    asked = options.needle - options.needle // 2
    correct, loss = 0, 0.0
    for batch in sequences.split(options.batch_size):
        target = batch[:, -asked:]
        logits = model.logits(batch[:, :-1])[:, -asked:].float()
        correct += int((logits.argmax(-1) == target).sum())
        loss += F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="sum").item()
    num_tokens = len(sequences) * asked
    return correct / num_tokens, loss / num_tokens
