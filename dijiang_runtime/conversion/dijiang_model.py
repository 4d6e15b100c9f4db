"""A DiJiang decoder as training sees it: logits, attention outputs of single layers, a folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dijiang_runtime.models.config import ModelConfig
from dijiang_runtime.models.decoder import Decoder
from dijiang_runtime.models.loader import load_model, save_model
from dijiang_runtime.models.recurrence import FreshSequences
from dijiang_runtime.models.rotary import rotary_angles


@dataclass(frozen=True)
class DiJiangModel:
    """Wraps the decoder; see `TrainableModel`."""

    decoder: Decoder
    trains_tables: bool = False
    """Whether training may change D1 and D2. Theirs grow exponentially, and so do gradients."""

    @property
    def module(self) -> nn.Module:
        return self.decoder

    @property
    def kind(self) -> str:
        return "dijiang"

    @property
    def vocab_size(self) -> int:
        return self.decoder.config.vocab_size

    @property
    def eos_token_id(self) -> int | None:
        return next(iter(self.decoder.config.eos_token_ids), None)

    @property
    def max_length(self) -> int | None:
        return self.decoder.config.position_limit

    def checkpoint_gradients(self) -> None:
        self.decoder.gradient_checkpointing = True

    def is_trained(self, name: str) -> bool:
        """The authors freeze the feature map, and at first the decay."""
        if name.endswith((".D1", ".D2")):
            return self.trains_tables
        is_frozen = self.decoder.config.preset == "official"
        return not (is_frozen and name.endswith((".projection", ".log_decay_rate")))

    def logits(self, token_ids: Tensor) -> Tensor:
        """`[B, T]` -> `[B, T, vocab]`."""
        return self.decoder(token_ids)

    def attention_outputs(self, inputs: list[Tensor]) -> list[Tensor]:
        """What each layer's attention makes of the input given to it, both `[B, T, hidden]`."""
        batch, length = inputs[0].shape[:2]
        positions = torch.arange(length, device=inputs[0].device).repeat(batch)
        recurrence = FreshSequences(batch, length)
        angles = None
        if self.decoder.config.rotary_dim:
            frequencies = self.decoder.rotary_frequencies
            angles = rotary_angles(positions, frequencies, torch.float32)
        return [
            layer.attention(x.flatten(0, 1), positions, angles, recurrence, None).view_as(x)
            for layer, x in zip(self._layers, inputs, strict=True)
        ]

    def attention_blocks(self) -> list[nn.Module]:
        """The attention modules, first layer first."""
        return [layer.attention for layer in self._layers]

    @property
    def _layers(self) -> list[Any]:
        return list(self.decoder.layers)

    def save(self, folder: Path, dtype: torch.dtype) -> None:
        """Write `config.json` and safetensors with matrices of this dtype."""
        save_model(self.decoder, folder, dtype=dtype)


def load_dijiang(folder: Path) -> DiJiangModel:
    """Load a DiJiang folder in float32, ready to be trained."""
    return DiJiangModel(load_model(folder).requires_grad_(True))


def new_dijiang(config: dict[str, Any], seed: int) -> DiJiangModel:
    """A DiJiang model with random weights."""
    torch.manual_seed(seed)
    return DiJiangModel(Decoder(ModelConfig.from_dict(config)))
