"""Learning from the parent: first each attention block's output, then the token distribution."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F

from dijiang_runtime.conversion.data import TrainingBatches
from dijiang_runtime.conversion.dijiang_model import DiJiangModel
from dijiang_runtime.conversion.errors import TrainingError
from dijiang_runtime.conversion.loop import Stage
from dijiang_runtime.conversion.trainable import TrainableModel
from dijiang_runtime.conversion.vanilla import VanillaModel

# A silent block would make the relative error a division by zero.
_MIN_POWER = 1e-12


def alignment_stage(
    model: TrainableModel,
    teacher: VanillaModel,
    batches: TrainingBatches,
    *,
    num_steps: int,
    peak_lr: float,
) -> Stage:
    """Train the attention alone to put out what the teacher's attention puts out.

    All layers learn at once, each on the input that the teacher's layer sees, so that no layer
    waits for the one below to become good.

    Raises:
        TrainingError: the model is not a DiJiang one.
    """
    if not isinstance(model, DiJiangModel):
        raise TrainingError("Only a DiJiang model can be aligned with a teacher's attention.")
    student = model

    def loss(batch: Tensor) -> Tensor:
        with attention_records(teacher) as (inputs, outputs), torch.no_grad():
            teacher.logits(batch[:, :-1])
        return alignment_loss(student.attention_outputs(inputs), outputs)

    return Stage(
        name="align",
        num_steps=num_steps,
        peak_lr=peak_lr,
        batches=batches,
        loss=loss,
        trains=lambda name: ".attention." in name and model.is_trained(name),
    )


def kl_stage(
    model: TrainableModel,
    teacher: VanillaModel,
    batches: TrainingBatches,
    *,
    num_steps: int,
    peak_lr: float,
) -> Stage:
    """Train all weights to give the teacher's distribution of the next token."""

    def loss(batch: Tensor) -> Tensor:
        with torch.no_grad():
            target = teacher.logits(batch[:, :-1])
        return kl_loss(model.logits(batch[:, :-1]), target)

    return Stage(
        name="distil",
        num_steps=num_steps,
        peak_lr=peak_lr,
        batches=batches,
        loss=loss,
        trains=model.is_trained,
    )


def alignment_loss(outputs: list[Tensor], targets: list[Tensor]) -> Tensor:
    """Mean over layers and sequences of the squared error, relative to the target's power.

    Both hold `[B, T, hidden]` for each layer. A sequence's error does not depend on the others, so
    that a batch may be split.
    """
    errors = []
    for output, target in zip(outputs, targets, strict=True):
        output, target = output.float(), target.float()
        power = target.square().mean((1, 2)).clamp(min=_MIN_POWER)
        errors.append(((output - target).square().mean((1, 2)) / power).mean())
    return torch.stack(errors).mean()


def kl_loss(logits: Tensor, target_logits: Tensor) -> Tensor:
    """KL(teacher || student) in nats, mean over tokens. Both `[B, T, V]`."""
    return F.kl_div(
        F.log_softmax(logits.float(), -1).flatten(0, 1),
        F.log_softmax(target_logits.float(), -1).flatten(0, 1),
        log_target=True,
        reduction="batchmean",
    )


@contextmanager
def attention_records(teacher: VanillaModel) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Record what goes into and comes out of each attention block of the teacher.

    The two lists fill, layer by layer, as the teacher runs inside the `with` block.
    """
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []

    def record(module, args, kwargs, output) -> None:  # type: ignore[no-untyped-def]
        inputs.append(kwargs["hidden_states"] if "hidden_states" in kwargs else args[0])
        outputs.append(output[0] if isinstance(output, tuple) else output)

    handles = [
        module.register_forward_hook(record, with_kwargs=True)
        for module in teacher.attention_blocks()
    ]
    try:
        yield inputs, outputs
    finally:
        for handle in handles:
            handle.remove()
