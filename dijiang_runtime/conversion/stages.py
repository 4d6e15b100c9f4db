"""The stages of a training: which objective, on which text, for how many steps."""

import numpy as np
from torch import Tensor

from dijiang_runtime.conversion.data import TrainingBatches
from dijiang_runtime.conversion.distillation import alignment_stage, kl_stage
from dijiang_runtime.conversion.errors import TrainingError
from dijiang_runtime.conversion.evaluate import next_token_loss
from dijiang_runtime.conversion.loop import Stage
from dijiang_runtime.conversion.options import TrainOptions
from dijiang_runtime.conversion.trainable import TrainableModel
from dijiang_runtime.conversion.vanilla import VanillaModel


def check_stages(
    model: TrainableModel, teacher: VanillaModel | None, options: TrainOptions
) -> None:
    """Raise TrainingError if model, teacher and lengths do not go together."""
    if teacher is not None and teacher.vocab_size != model.vocab_size:
        raise TrainingError(
            f"The teacher has {teacher.vocab_size} token logits, the model {model.vocab_size}; "
            "distillation needs the same vocabulary."
        )
    lengths = [("context", options.context, model.max_length)]
    if teacher is not None:
        lengths.append(("context", options.context, teacher.max_length))
    if options.long_fraction:
        lengths.append(("long_context", options.long_context, model.max_length))
    for name, length, limit in lengths:
        if limit is not None and length > limit:
            raise TrainingError(f"{name} is {length}, but there are only {limit} positions.")
    tokens_per_step = options.batch_size * options.context
    if options.long_fraction and options.long_context > tokens_per_step:
        raise TrainingError(
            f"long_context is {options.long_context}, more than the {tokens_per_step} tokens of a "
            "step (batch_size times context). Raise the batch size."
        )


def plan_stages(
    model: TrainableModel,
    teacher: VanillaModel | None,
    token_ids: np.ndarray,
    options: TrainOptions,
) -> list[Stage]:
    """Alignment, distillation or cross-entropy, and long sequences, as the options want them."""
    seed = options.loop.seed
    batches = TrainingBatches(token_ids, options.context, options.batch_size, seed)
    num_steps = max(1, options.tokens // batches.tokens_per_step)
    num_align = round(num_steps * options.align_fraction)
    long_tokens = round(num_steps * options.long_fraction) * batches.tokens_per_step
    num_main = num_steps - num_align - long_tokens // batches.tokens_per_step
    stages = []
    if teacher is None:
        stages.append(_cross_entropy("train", model, batches, num_main, options.lr))
    else:
        stages += [
            alignment_stage(model, teacher, batches, num_steps=num_align, peak_lr=options.align_lr),
            kl_stage(model, teacher, batches, num_steps=num_main, peak_lr=options.lr),
        ]
    if long_tokens:
        rows = batches.tokens_per_step // options.long_context
        long = TrainingBatches(token_ids, options.long_context, rows, seed)
        num_long = max(1, long_tokens // long.tokens_per_step)
        stages.append(_cross_entropy("long", model, long, num_long, options.long_lr))
    return [stage for stage in stages if stage.num_steps]


def _cross_entropy(
    name: str, model: TrainableModel, batches: TrainingBatches, num_steps: int, lr: float
) -> Stage:
    def loss(batch: Tensor) -> Tensor:
        return next_token_loss(model.logits(batch[:, :-1]), batch)

    return Stage(
        name=name,
        num_steps=num_steps,
        peak_lr=lr,
        batches=batches,
        loss=loss,
        trains=model.is_trained,
    )
