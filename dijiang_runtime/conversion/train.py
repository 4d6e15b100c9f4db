"""Train a model folder from text: cross-entropy, or distillation from its vanilla parent."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dijiang_runtime.conversion import checkpoint
from dijiang_runtime.conversion.data import (
    TrainingBatches,
    evaluation_blocks,
    load_tokenizer,
    pack_documents,
)
from dijiang_runtime.conversion.distillation import alignment_stage, kl_stage
from dijiang_runtime.conversion.errors import TrainingError
from dijiang_runtime.conversion.evaluate import mean_loss, next_token_loss
from dijiang_runtime.conversion.folder import copy_generation_config, copy_tokenizer
from dijiang_runtime.conversion.loop import LoopOptions, Stage, TrainingLoop, TrainReport
from dijiang_runtime.conversion.provenance import add_step
from dijiang_runtime.conversion.trainable import TrainableModel, load_model_folder, new_model
from dijiang_runtime.conversion.vanilla import VanillaModel, load_vanilla


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """What `dijiang train` is told. Paths do not change the result; everything else does."""

    model: Path
    """A DiJiang folder, or a vanilla one. With `config`, only its tokenizer is used."""
    data: tuple[Path, ...]
    """Text files; one named twice is read twice as often."""
    out: Path
    teacher: Path | None = None
    """The vanilla parent whose outputs are learnt. Without it: cross-entropy."""
    config: Path | None = None
    """Start from random weights of this config.json."""
    heldout: Path | None = None
    """Text on which the loss is measured at intervals."""
    num_tokens: int = 5_000_000
    context: int = 256
    batch_size: int = 16
    lr: float = 1e-3
    align_fraction: float = 0.0
    """Share of the tokens that first align attention-block outputs with the teacher's."""
    align_lr: float = 1e-3
    heldout_tokens: int = 65_536
    num_threads: int | None = None
    dtype: torch.dtype = torch.float32
    """Of the finished model on disk; training itself is in float32."""
    restart: bool = False
    """Begin anew, whatever checkpoint or finished model `out` holds."""
    loop: LoopOptions = dataclasses.field(default_factory=LoopOptions)


def train(
    options: TrainOptions, report: Callable[[TrainReport], None] | None = None
) -> TrainableModel:
    """Train and write the finished model folder to `options.out`; return the model.

    A checkpoint in `options.out` is gone on from, and removed when the training is finished.

    Raises:
        TrainingError: options that contradict each other, or a training that diverged.
        DataError, ConversionError, ModelLoadError: unusable text, tokenizer, teacher or model.
    """
    _check(options)
    if options.num_threads is not None:
        torch.set_num_threads(options.num_threads)
    model = _initial_model(options)
    teacher = load_vanilla(options.teacher) if options.teacher is not None else None
    _check_pair(model, teacher)
    tokenizer = load_tokenizer(options.model)
    token_ids = pack_documents(options.data, tokenizer, eos_token_id=model.eos_token_id)
    batches = TrainingBatches(token_ids, options.context, options.batch_size, options.loop.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.restart:
        checkpoint.delete_checkpoint(options.out)
    evaluate = _heldout_evaluation(model, options)
    loop = TrainingLoop(
        model.module,
        batches,
        options.out,
        options.loop,
        fingerprint=_fingerprint(options),
        evaluate=evaluate,
        report=report,
    )
    loop.run(_stages(model, teacher, options))
    _finish(model, options, evaluate() if evaluate is not None else None)
    return model


def _finish(model: TrainableModel, options: TrainOptions, heldout_loss: float | None) -> None:
    """Write the finished folder; only then is the checkpoint of no more use."""
    model.module.requires_grad_(True).eval()
    model.save(options.out, options.dtype)
    copy_tokenizer(options.model, options.out)
    copy_generation_config(options.model, options.out)
    add_step(
        options.model,
        options.out,
        {
            "command": "train",
            "from": "random weights" if options.config is not None else None,
            "objective": "cross-entropy" if options.teacher is None else "KL to the teacher",
            "data": [path.name for path in options.data],
            "tokens": options.num_tokens,
            "context": options.context,
            "batch_size": options.batch_size,
            "lr": options.lr,
            "align_fraction": options.align_fraction or None,
            "seed": options.loop.seed,
            "heldout_loss": heldout_loss,
        },
    )
    checkpoint.delete_checkpoint(options.out)


def _check(options: TrainOptions) -> None:
    if not 0 <= options.align_fraction <= 1:
        raise TrainingError(f"align_fraction is {options.align_fraction}, not between 0 and 1.")
    if options.align_fraction and options.teacher is None:
        raise TrainingError("Alignment needs a teacher: name the parent with --teacher.")
    if options.out.resolve() == options.model.resolve() and options.config is None:
        raise TrainingError("The output folder is the model's own; choose another.")
    is_finished = any(options.out.glob("*.safetensors"))
    if is_finished and not options.restart:
        raise TrainingError(
            f"{options.out} holds a finished model. Choose another folder, or restart the training."
        )


def _check_pair(model: TrainableModel, teacher: VanillaModel | None) -> None:
    if teacher is not None and teacher.vocab_size != model.vocab_size:
        raise TrainingError(
            f"The teacher has {teacher.vocab_size} token logits, the model {model.vocab_size}; "
            "distillation needs the same vocabulary."
        )


def _initial_model(options: TrainOptions) -> TrainableModel:
    if options.config is not None:
        return new_model(options.config, options.loop.seed)
    return load_model_folder(options.model)


def _stages(
    model: TrainableModel, teacher: VanillaModel | None, options: TrainOptions
) -> Sequence[Stage]:
    tokens_per_step = options.batch_size * options.context
    num_steps = max(1, options.num_tokens // tokens_per_step)
    if teacher is None:

        def cross_entropy(batch: Tensor) -> Tensor:
            return next_token_loss(model.logits(batch[:, :-1]), batch)

        return [
            Stage(
                name="train",
                num_steps=num_steps,
                peak_lr=options.lr,
                loss=cross_entropy,
                trains=model.is_trained,
            )
        ]
    num_align = round(num_steps * options.align_fraction)
    return [
        alignment_stage(model, teacher, num_steps=num_align, peak_lr=options.align_lr),
        kl_stage(model, teacher, num_steps=num_steps - num_align, peak_lr=options.lr),
    ]


def _heldout_evaluation(model: TrainableModel, options: TrainOptions) -> Callable[[], float] | None:
    if options.heldout is None:
        return None
    token_ids = pack_documents(
        [options.heldout], load_tokenizer(options.model), eos_token_id=model.eos_token_id
    )
    blocks = evaluation_blocks(token_ids[: options.heldout_tokens + 1], options.context)
    return lambda: mean_loss(model.logits, blocks, options.batch_size)


def _fingerprint(options: TrainOptions) -> dict[str, Any]:
    """The options that decide the weights, in JSON's types."""
    names = ("num_tokens", "context", "batch_size", "lr", "align_fraction", "align_lr")
    loop = options.loop
    return {
        **{name: getattr(options, name) for name in names},
        "data": [path.name for path in options.data],
        "has_teacher": options.teacher is not None,
        "seed": loop.seed,
        "bfloat16": loop.bfloat16,
        "weight_decay": loop.weight_decay,
        "max_grad_norm": loop.max_grad_norm,
        "warmup_fraction": loop.warmup_fraction,
        "min_lr_fraction": loop.min_lr_fraction,
    }
