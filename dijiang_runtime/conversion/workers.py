"""The processes of one training: alone, or as many as `accelerate launch` or `torchrun` started.

Every process holds the whole model and computes its share of each batch. Gradients are averaged
before the step, so all of them hold the same weights, up to rounding those of a single process.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dijiang_runtime.conversion.errors import TrainingError

_BUCKET_ELEMENTS = 16 * 1024 * 1024


@dataclass(frozen=True)
class Workers:
    """This process among the others. `accelerator` is None where there are no others."""

    device: torch.device
    accelerator: Any = None

    @property
    def count(self) -> int:
        return self.accelerator.num_processes if self.accelerator is not None else 1

    @property
    def rank(self) -> int:
        return self.accelerator.process_index if self.accelerator is not None else 0

    @property
    def is_main(self) -> bool:
        """Whether this is the one process that writes files and speaks."""
        return self.rank == 0

    def share(self, rows: Tensor) -> Tensor:
        """This process's rows, on its device. Their number is divisible by `count`."""
        return rows[self.rank :: self.count].to(self.device)

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its mean over all processes."""
        if self.accelerator is None:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.flatten() for tensor in bucket])
            flat = self.accelerator.reduce(flat, reduction="mean")
            parts = flat.split([tensor.numel() for tensor in bucket])
            for tensor, part in zip(bucket, parts, strict=True):
                tensor.copy_(part.view_as(tensor))

    def wait(self) -> None:
        """Return when every process has come here."""
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()

    def close(self) -> None:
        if self.accelerator is not None:
            self.accelerator.end_training()


def join_workers(device: str) -> Workers:
    """Meet the other processes, if the environment names some, and choose a device.

    Raises:
        TrainingError: no CUDA device, or several processes without the package `accelerate`.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise TrainingError("There is no CUDA device, or this build of torch cannot use it.")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        try:
            from accelerate import Accelerator
        except ImportError as exc:
            raise TrainingError(
                "Several processes need the package accelerate: pip install accelerate."
            ) from exc
        accelerator = Accelerator(cpu=device == "cpu")
        return Workers(accelerator.device, accelerator)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return Workers(torch.device(device))


def _buckets(tensors: Iterable[Tensor]) -> Iterable[list[Tensor]]:
    """Tensors in groups of limited size: one message for many, and no second copy of a model."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and size + tensor.numel() > _BUCKET_ELEMENTS:
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel()
    if bucket:
        yield bucket
