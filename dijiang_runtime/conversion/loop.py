"""The training loop: seeded batches in, a trained module out, interruptible at any step."""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dijiang_runtime.conversion import checkpoint
from dijiang_runtime.conversion.data import TrainingBatches
from dijiang_runtime.conversion.errors import TrainingError
from dijiang_runtime.conversion.options import LoopOptions
from dijiang_runtime.conversion.workers import Workers

logger = logging.getLogger(__name__)

# Never shrunk towards zero: a zero there is a statement, not an absence.
_UNDECAYED = ("feature_map", "log_decay_rate", "embed_positions", "window_mix")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Steps that share an objective and a learning-rate curve of their own."""

    name: str
    num_steps: int
    peak_lr: float
    batches: TrainingBatches
    loss: Callable[[Tensor], Tensor]
    """Of a batch `[B, context + 1]`; the mean over its rows."""
    trains: Callable[[str], bool] = lambda name: True
    """Whether the parameter of this name is trained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainReport:
    """One line of progress."""

    stage: str
    step: int
    num_steps: int
    num_tokens: int
    loss: float
    lr: float
    grad_norm: float
    tokens_per_second: float
    remaining_seconds: float
    heldout_loss: float | None = None


class TrainingLoop:
    """Trains a module in place through stages, going on from the checkpoint in `out`, if any.

    A step depends on the seed and its number alone, so an interrupted and resumed training ends
    with the same weights as one that ran through.
    """

    def __init__(
        self,
        module: nn.Module,
        out: Path,
        options: LoopOptions,
        workers: Workers,
        *,
        fingerprint: Mapping[str, Any],
        evaluate: Callable[[], float] | None = None,
        report: Callable[[TrainReport], None] | None = None,
    ) -> None:
        self.module = module
        self.out = out
        self.options = options
        self.workers = workers
        self.fingerprint = dict(fingerprint)
        self.evaluate = evaluate
        self.report = report
        self._stages: Sequence[Stage] = ()
        self._num_steps = 0
        self._clock = (0.0, 0)

    def run(self, stages: Sequence[Stage]) -> None:
        """Run what is left of the stages.

        Raises:
            TrainingError: a gradient is not finite, or the checkpoint is of another training.
        """
        done = self._resume()
        self._stages = stages
        self._num_steps = sum(stage.num_steps for stage in stages)
        self._clock = (time.perf_counter(), self._num_tokens(done))
        start = 0
        for stage in stages:
            end = start + stage.num_steps
            if done < end:
                self._run_stage(stage, start, max(start, done))
            start = end

    def _resume(self) -> int:
        state = checkpoint.read_state(self.out)
        if state is None:
            return 0
        different = [k for k, v in self.fingerprint.items() if state.fingerprint.get(k) != v]
        if different:
            raise TrainingError(
                f"{self.out} holds a checkpoint of a training with another "
                f"{', '.join(different)}. Use the same options, or another output folder."
            )
        checkpoint.restore_module(self.out, self.module)
        logger.info("Resumed after step %d", state.step)
        return state.step

    def _run_stage(self, stage: Stage, start: int, first: int) -> None:
        for name, parameter in self.module.named_parameters():
            parameter.requires_grad_(stage.trains(name))
        optimizer = new_optimizer(self.module, stage.peak_lr, self.options)
        if first > start:
            checkpoint.restore_optimizer(self.out, self.module, optimizer)
        for step in range(first, start + stage.num_steps):
            lr = stage.peak_lr * lr_factor((step - start) / stage.num_steps, self.options)
            for group in optimizer.param_groups:
                group["lr"] = lr
            loss, grad_norm = self._step(stage, optimizer, step)
            self._speak(stage, step + 1, loss, lr, grad_norm)
            if (step + 1) % self.options.save_every == 0:
                self._save(step + 1, optimizer)

    def _save(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        if self.workers.is_main:
            state = checkpoint.TrainingState(step, self.fingerprint)
            checkpoint.save_checkpoint(self.out, state, self.module, optimizer)
        self.workers.wait()

    def _step(
        self, stage: Stage, optimizer: torch.optim.Optimizer, step: int
    ) -> tuple[Tensor, Tensor]:
        # Dropout, where a parent has it, must not depend on where a training was interrupted.
        torch.manual_seed(self.options.seed * 1_000_003 + step)
        self.module.train()
        batch = self.workers.share(stage.batches.at(step))
        with torch.autocast(batch.device.type, torch.bfloat16, enabled=self.options.bfloat16):
            loss = stage.loss(batch)
        loss.backward()
        loss = loss.detach()
        parameters = [p for p in self.module.parameters() if p.grad is not None]
        self.workers.average([loss, *(p.grad for p in parameters if p.grad is not None)])
        grad_norm = nn.utils.clip_grad_norm_(parameters, self.options.max_grad_norm)
        if not math.isfinite(grad_norm):
            raise TrainingError(self._not_finite(stage, step, loss))
        optimizer.step()
        optimizer.zero_grad()
        return loss, grad_norm

    def _not_finite(self, stage: Stage, step: int, loss: Tensor) -> str:
        # Clipping scaled every gradient by the norm, so the culprit is only named by its loss.
        return (
            f"The gradient is not finite at step {step} of stage {stage.name} (loss "
            f"{loss.item():.4g}). Nothing of this step was applied. Lower the learning rate, or go "
            "on from the last checkpoint in float32."
        )

    def _speak(self, stage: Stage, done: int, loss: Tensor, lr: float, grad_norm: Tensor) -> None:
        is_last = done == self._num_steps
        heldout = None
        if self.evaluate is not None and (is_last or done % self.options.evaluate_every == 0):
            self.module.eval()
            heldout = self.evaluate()
        if self.report is None or not (
            is_last or heldout is not None or done % self.options.log_every == 0
        ):
            return
        now, num_tokens = time.perf_counter(), self._num_tokens(done)
        since, tokens_then = self._clock
        speed = (num_tokens - tokens_then) / max(now - since, 1e-9)
        self._clock = (now, num_tokens)
        self.report(
            TrainReport(
                stage=stage.name,
                step=done,
                num_steps=self._num_steps,
                num_tokens=num_tokens,
                loss=loss.item(),
                lr=lr,
                grad_norm=grad_norm.item(),
                tokens_per_second=speed,
                remaining_seconds=(self._num_tokens(self._num_steps) - num_tokens) / speed,
                heldout_loss=heldout,
            )
        )

    def _num_tokens(self, step: int) -> int:
        """Tokens of the first `step` steps."""
        total = 0
        for stage in self._stages:
            steps = min(step, stage.num_steps)
            total += steps * stage.batches.tokens_per_step
            step -= steps
        return total


def lr_factor(position: float, options: LoopOptions) -> float:
    """Linear warm-up, then a cosine, as a fraction of the peak; `position` runs from 0 to 1."""
    if position < options.warmup_fraction:
        # The first step is at position 0, and a rate of 0 would waste it.
        return max(position, 0.05 * options.warmup_fraction) / options.warmup_fraction
    progress = (position - options.warmup_fraction) / (1 - options.warmup_fraction)
    low = options.min_lr_fraction
    return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * progress))


def new_optimizer(module: nn.Module, lr: float, options: LoopOptions) -> torch.optim.AdamW:
    """AdamW over the parameters that are trained; only matrices of weights decay."""
    decayed: list[nn.Parameter] = []
    undecayed: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        keeps = parameter.ndim < 2 or any(part in name for part in _UNDECAYED)
        (undecayed if keeps else decayed).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": options.weight_decay},
        {"params": undecayed, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), eps=1e-8, fused=True)
