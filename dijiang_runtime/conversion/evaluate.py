"""Loss and perplexity of a DiJiang model, or of its vanilla parent, on the same text."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from dijiang_runtime.conversion.data import evaluation_blocks, load_tokenizer, pack_documents
from dijiang_runtime.conversion.trainable import load_model_folder

LogitsFn = Callable[[Tensor], Tensor]
AdvanceFn = Callable[[int, int], None]

# exp() of a larger loss is no float; a perplexity of 1e304 says as much.
_MAX_EXPONENT = 700.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateOptions:
    """How the text is cut."""

    context: int = 256
    """Tokens a block sees at most; blocks follow each other and start from nothing."""
    batch_size: int = 16
    max_tokens: int | None = None
    """Stop after this many tokens of the text."""


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


@torch.no_grad()
def mean_loss(
    logits_of: LogitsFn, blocks: Tensor, batch_size: int, advance: AdvanceFn | None = None
) -> float:
    """Mean cross-entropy in nats over `blocks [num_blocks, context + 1]`, summed in float64."""
    total, done = 0.0, 0
    for batch in blocks.split(batch_size):
        done += len(batch)
        if advance is not None:
            advance(done, len(blocks))
        total += next_token_loss(logits_of(batch[:, :-1]), batch, reduction="sum").item()
    return total / (blocks.shape[0] * (blocks.shape[1] - 1))


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
    model = load_model_folder(folder)
    token_ids = pack_documents(data, load_tokenizer(folder), eos_token_id=model.eos_token_id)
    if options.max_tokens is not None:
        token_ids = token_ids[: options.max_tokens + 1]
    blocks = evaluation_blocks(token_ids, options.context)
    model.module.eval()
    loss = mean_loss(model.logits, blocks, options.batch_size, progress)
    return Evaluation(
        loss=loss,
        perplexity=math.exp(min(loss, _MAX_EXPONENT)),
        num_tokens=blocks.shape[0] * (blocks.shape[1] - 1),
        context=blocks.shape[1] - 1,
        num_parameters=sum(p.numel() for p in model.module.parameters()),
        kind=model.kind,
    )
