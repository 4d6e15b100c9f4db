"""Which tensors of a converted model are the parent's, and which are new."""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from dijiang_runtime.models.config import ModelConfig
from dijiang_runtime.models.shards import TensorSpec


@dataclass(frozen=True, slots=True)
class TensorGroup:
    """Tensors that differ by their layer alone."""

    name: str
    """With `*` for the layer."""
    shape: tuple[int, ...]
    count: int
    is_copied: bool

    @property
    def num_parameters(self) -> int:
        return self.count * torch.Size(self.shape).numel()


@dataclass(frozen=True)
class ConversionReport:
    """Which tensors of the new model are the parent's, and which are not."""

    config: ModelConfig
    groups: tuple[TensorGroup, ...]
    unused: tuple[str, ...] = field(default=())
    """Tensors of the parent that the new model has no place for."""

    @property
    def num_copied(self) -> int:
        """Parameters that are bit for bit the parent's."""
        return sum(group.num_parameters for group in self.groups if group.is_copied)

    @property
    def num_new(self) -> int:
        """Parameters that the parent does not have."""
        return sum(group.num_parameters for group in self.groups if not group.is_copied)

    def to_dict(self) -> dict[str, Any]:
        """The report in JSON's types."""
        return {
            "config": self.config.to_dict(),
            "tensors": [dataclasses.asdict(group) for group in self.groups],
            "copied_parameters": self.num_copied,
            "new_parameters": self.num_new,
            "unused": list(self.unused),
        }


def tensor_groups(
    specs: Mapping[str, TensorSpec], copied: Iterable[str]
) -> tuple[TensorGroup, ...]:
    """The model's tensors by name with the layer left out, in the model's order."""
    copied = set(copied)
    counts: dict[tuple[str, tuple[int, ...], bool], int] = {}
    for name, spec in specs.items():
        key = (re.sub(r"layers\.\d+\.", "layers.*.", name), spec.shape, name in copied)
        counts[key] = counts.get(key, 0) + 1
    return tuple(TensorGroup(*key[:2], count, key[2]) for key, count in counts.items())
