"""Loss and perplexity of a DiJiang model, or of its vanilla parent, on the same text."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dijiang_runtime.conversion.data import evaluation_blocks, load_tokenizer, pack_documents
from dijiang_runtime.conversion.errors import DataError
from dijiang_runtime.conversion.served import ServedModel
from dijiang_runtime.conversion.trainable import load_model_folder
from dijiang_runtime.models.packed import num_parameters
from dijiang_runtime.models.packed_folder import packed_format
from dijiang_runtime.models.serving import DtypeChoice


class EvaluatedModel(Protocol):
    """What evaluation needs of a model, be it one to train or one to serve."""

    @property
    def module(self) -> nn.Module: ...

    @property
    def kind(self) -> str: ...

    @property
    def eos_token_id(self) -> int | None: ...

    @property
    def max_length(self) -> int | None: ...

    def logits(self, token_ids: Tensor) -> Tensor: ...


LogitsFn = Callable[[Tensor], Tensor]
AdvanceFn = Callable[[int, int], None]

# exp() of a larger loss is no float; a perplexity of 1e304 says as much.
_MAX_EXPONENT = 700.0
_FIRST_BUCKET = 16
_TOKENS_PER_BATCH = 4096
_USUAL_CONTEXT = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateOptions:
    """How the text is cut."""

    context: int | None = None
    """Tokens a block sees at most; blocks follow each other and start from nothing. None: 256, or
    as many as the model has positions for."""
    batch_size: int | None = None
    """None: as many blocks as hold about 4,096 tokens."""
    max_tokens: int | None = None
    """Stop after this many tokens of the text."""
    dtype: DtypeChoice | None = None
    """Measure a DiJiang model as it is served in this dtype; None: as it is trained, or packed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """The loss of predictions that saw `start` + 1 to `stop` tokens."""

    start: int
    stop: int
    loss: float
    """Mean negative log-likelihood, nats per token."""
    perplexity: float
    num_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What `dijiang eval` prints."""

    loss: float
    """Mean negative log-likelihood, nats per token."""
    perplexity: float
    num_tokens: int
    """Tokens predicted."""
    context: int
    num_parameters: int
    kind: str
    """`dijiang` or `vanilla`."""
    by_position: tuple[Bucket, ...]
    """Each from twice as far in a block as the one before."""


def mean_loss(logits_of: LogitsFn, blocks: Tensor, batch_size: int) -> float:
    """Mean cross-entropy in nats over `blocks [num_blocks, context + 1]`, summed in float64."""
    return float(position_losses(logits_of, blocks, batch_size).mean())


@torch.no_grad()
def position_losses(
    logits_of: LogitsFn, blocks: Tensor, batch_size: int, advance: AdvanceFn | None = None
) -> Tensor:
    """Mean cross-entropy in nats at each place of `blocks [num_blocks, context + 1]`.

    Returns:
        Float64 [context].
    """
    total, done = torch.zeros(blocks.shape[1] - 1, dtype=torch.float64), 0
    for batch in blocks.split(batch_size):
        done += len(batch)
        losses = next_token_loss(logits_of(batch[:, :-1]), batch, reduction="none")
        total += losses.view(len(batch), -1).sum(0, dtype=torch.float64).cpu()
        if advance is not None:
            advance(done, len(blocks))
    return total / len(blocks)


def buckets(losses: Tensor, num_blocks: int) -> Iterator[Bucket]:
    """Losses by place [context] as means over 1 to 16, 17 to 32, 33 to 64, ... tokens seen."""
    start, stop = 0, _FIRST_BUCKET
    while start < len(losses):
        inside = losses[start:stop]
        loss = float(inside.mean())
        yield Bucket(
            start=start,
            stop=start + len(inside),
            loss=loss,
            perplexity=perplexity(loss),
            num_tokens=num_blocks * len(inside),
        )
        start, stop = stop, 2 * stop


def perplexity(loss: float) -> float:
    """exp of a loss in nats."""
    return math.exp(min(loss, _MAX_EXPONENT))


def next_token_loss(logits: Tensor, batch: Tensor, *, reduction: str = "mean") -> Tensor:
    """Cross-entropy of `logits [B, T, V]` with the ids that follow in `batch [B, T + 1]`."""
    return F.cross_entropy(
        logits.float().flatten(0, 1), batch[:, 1:].flatten(), reduction=reduction
    )


def evaluate(
    folder: Path,
    data: Sequence[str | Path],
    options: EvaluateOptions,
    progress: AdvanceFn | None = None,
) -> Evaluation:
    """Loss and perplexity of a model folder, DiJiang or vanilla, on text files.

    Args:
        progress: called with the blocks done and their number.

    Raises:
        DataError, ConversionError, ModelLoadError: unusable text, tokenizer or model.
    """
    model: EvaluatedModel
    if options.dtype is None and packed_format(folder) is None:
        model = load_model_folder(folder)
    else:
        model = ServedModel(folder, options.dtype or "auto")
    token_ids = pack_documents(data, load_tokenizer(folder), eos_token_id=model.eos_token_id)
    return evaluate_model(model, token_ids, options, progress)


def evaluate_model(
    model: EvaluatedModel,
    token_ids: np.ndarray,
    options: EvaluateOptions,
    progress: AdvanceFn | None = None,
) -> Evaluation:
    """Loss and perplexity of a model on token ids. Arguments and errors as in `evaluate`."""
    if options.max_tokens is not None:
        token_ids = token_ids[: options.max_tokens + 1]
    blocks = evaluation_blocks(token_ids, context_for(model, options.context))
    num_blocks, context = blocks.shape[0], blocks.shape[1] - 1
    model.module.eval()
    batch_size = options.batch_size or max(1, _TOKENS_PER_BATCH // context)
    losses = position_losses(model.logits, blocks, batch_size, progress)
    loss = float(losses.mean())
    return Evaluation(
        loss=loss,
        perplexity=perplexity(loss),
        num_tokens=num_blocks * context,
        context=context,
        num_parameters=num_parameters(model.module),
        kind=model.kind,
        by_position=tuple(buckets(losses, num_blocks)),
    )


def context_for(model: EvaluatedModel, asked: int | None) -> int:
    """The context asked for; if none was, 256, or as many positions as the model has.

    Raises:
        DataError: the model has not so many positions.
    """
    if asked is None:
        return _USUAL_CONTEXT if model.max_length is None else min(_USUAL_CONTEXT, model.max_length)
    check_length(model, asked)
    return asked


def check_length(model: EvaluatedModel, length: int) -> None:
    """Raise DataError if the model has not so many positions."""
    limit = model.max_length
    if limit is not None and length > limit:
        raise DataError(f"The model has {limit:,} positions, fewer than {length:,}.")
