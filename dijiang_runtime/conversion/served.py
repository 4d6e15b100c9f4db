"""A DiJiang model as the engine serves it, for measuring what a weight format costs."""

from pathlib import Path

import torch
from torch import Tensor, nn

from dijiang_runtime.models.recurrence import PooledRecurrence, PrefillSegment
from dijiang_runtime.models.serving import DtypeChoice, decoder_of, load_for_serving
from dijiang_runtime.ops.linear import prompt_tiles


class ServedModel:
    """Logits from the engine's own prefill: packed matrices, states in a pool."""

    kind = "dijiang"

    def __init__(self, folder: Path, dtype: DtypeChoice) -> None:
        """
        Raises:
            ModelLoadError: the folder cannot be served, or not in this dtype here.
        """
        self._model, self.dtype = load_for_serving(folder, torch.device("cpu"), dtype)
        self._config = self._model.config

    @property
    def module(self) -> nn.Module:
        return decoder_of(self._model)

    @property
    def eos_token_id(self) -> int | None:
        return next(iter(self._config.eos_token_ids), None)

    @property
    def max_length(self) -> int | None:
        return self._config.position_limit

    @torch.inference_mode()
    def logits(self, token_ids: Tensor) -> Tensor:
        """Return the logits [B, T, V] of sequences [B, T] that start from nothing."""
        return torch.stack([self._one(sequence) for sequence in token_ids])

    def _one(self, token_ids: Tensor) -> Tensor:
        length = len(token_ids)
        tiles = tuple(prompt_tiles(length))
        padding = sum(tiles) - length if self._model.needs_tiles else 0
        padded = torch.nn.functional.pad(token_ids, (0, padding))
        spec = self._config.state
        none = torch.empty(0, dtype=torch.int64)
        recurrence = PooledRecurrence(
            torch.zeros(spec.state_shape(2)),
            none,
            none,
            [PrefillSegment(0, length, 0, 1)],
            torch.zeros(spec.cache_shape(2)),
        )
        positions = torch.arange(len(padded))
        hidden = self._model.hidden(padded, positions, recurrence, tiles)
        return self._model.logits(hidden, tiles)[:length]
