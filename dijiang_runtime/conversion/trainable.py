"""What training and evaluation need of a model, be it DiJiang or vanilla."""

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from dijiang_runtime.conversion.vanilla import load_vanilla, new_vanilla, read_config
from dijiang_runtime.models.config import MODEL_TYPE


class TrainableModel(Protocol):
    """`ids -> logits`, with parameters behind it and a folder to be written to."""

    @property
    def module(self) -> nn.Module: ...

    @property
    def kind(self) -> str: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def eos_token_id(self) -> int | None: ...

    @property
    def max_length(self) -> int | None:
        """Positions that the model has, None where there is no limit."""
        ...

    def is_trained(self, name: str) -> bool:
        """Whether training may change the parameter of this name."""
        ...

    def checkpoint_gradients(self) -> None:
        """From now on compute layers again in the backward pass, instead of keeping them."""
        ...

    def logits(self, token_ids: Tensor) -> Tensor: ...

    def save(self, folder: Path, dtype: torch.dtype) -> None: ...


def load_model_folder(folder: Path) -> TrainableModel:
    """Load a DiJiang folder, or a vanilla one through transformers."""
    if read_config(folder).get("model_type") != MODEL_TYPE:
        return load_vanilla(folder)
    from dijiang_runtime.conversion.dijiang_model import load_dijiang

    return load_dijiang(folder)


def new_model(config_file: Path, seed: int) -> TrainableModel:
    """A model with random weights from a `config.json` of either kind."""
    config = read_config(config_file.parent, config_file.name)
    if config.get("model_type") != MODEL_TYPE:
        return new_vanilla(config, seed)
    from dijiang_runtime.conversion.dijiang_model import new_dijiang

    return new_dijiang(config, seed)
