"""Our folders under transformers: `AutoModelForCausalLM.from_pretrained` and `generate`.

`import dijiang_runtime` is enough: it registers these classes as soon as transformers is imported.
For evaluation harnesses and notebooks; the engine does not use them.

    B batch    T tokens of this call    P padding before them    V vocabulary
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.configuration_utils import PretrainedConfig
from transformers.utils.generic import ModelOutput

from dijiang_runtime.models.config import MODEL_TYPE, ModelConfig
from dijiang_runtime.models.decoder import Decoder
from dijiang_runtime.models.loader import load_config, load_model, save_model
from dijiang_runtime.ops import torch_ops, windowed
from dijiang_runtime.ops.windowed import WindowInputs

_FIELDS = frozenset(field.name for field in dataclasses.fields(ModelConfig))


class DiJiangConfig(PretrainedConfig):
    """A `ModelConfig` where transformers expects a config of its own."""

    model_type = MODEL_TYPE

    def __init__(self, **values: Any) -> None:
        self.model = {key: values.pop(key) for key in list(values) if key in _FIELDS}
        if self.model:
            config = self.model_config
            values.setdefault("tie_word_embeddings", config.tie_word_embeddings)
            values.setdefault("bos_token_id", config.bos_token_id)
            values.setdefault("eos_token_id", list(config.eos_token_ids) or None)
        super().__init__(**values)

    @property
    def model_config(self) -> ModelConfig:
        """The config that fixes the model's shapes and arithmetic."""
        return ModelConfig.from_dict({"model_type": MODEL_TYPE, **self.model})

    @property
    def vocab_size(self) -> int:
        return self.model_config.vocab_size

    @property
    def hidden_size(self) -> int:
        return self.model_config.hidden_size

    @property
    def num_hidden_layers(self) -> int:
        return self.model_config.num_layers

    @property
    def max_position_embeddings(self) -> int:
        return self.model_config.max_position_embeddings


class SequenceStates:
    """The states of a batch between two calls: a recurrence for sequences that go on."""

    def __init__(self, config: ModelConfig, batch: int, device: torch.device) -> None:
        spec = config.state
        self.layers = list(torch.zeros(spec.state_shape(batch), device=device).unbind())
        self.caches = list(torch.zeros(spec.cache_shape(batch), device=device).unbind())
        self.positions = torch.zeros(batch, 1, dtype=torch.int64, device=device)
        """Of the next token of each sequence. Shape [B, 1]."""
        self._is_token = torch.ones(batch, 1, dtype=torch.bool, device=device)

    def begin(self, is_token: Tensor) -> Tensor:
        """Take in the tokens of a call, and return their positions [B, T].

        Args:
            is_token: False where there is padding, which may only come before the tokens. [B, T].
        """
        self._is_token = is_token
        positions = self.positions + is_token.cumsum(dim=1) - 1
        self.positions = positions[:, -1:] + 1
        return positions.clamp(min=0)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> Tensor:
        q, k, v = (x.unflatten(0, self._is_token.shape) for x in (q, k, v))
        if log_decay.dim() == 2:
            log_decay = log_decay[: self._is_token.shape[1]]
        # A key of zero leaves an empty state empty, whatever the decay.
        k = k * self._is_token[..., None, None]
        o, self.layers[layer] = torch_ops.chunk(q, k, v, log_decay, self.layers[layer])
        return o.flatten(0, 1)

    def attend_windowed(self, layer: int, inputs: WindowInputs, positions: Tensor) -> Tensor:
        x = inputs.map(lambda rows: rows.unflatten(0, self._is_token.shape))
        # Padding stands at negative positions, which nothing looks at.
        start = self.positions[:, 0] - self._is_token.shape[1]
        o, self.layers[layer], self.caches[layer] = windowed.chunk(
            x, self.layers[layer], self.caches[layer], start
        )
        return o.flatten(0, 1)

    def reorder(self, beams: Tensor) -> Self:
        """Choose the sequences that go on, for beam search."""
        self.layers = [states[beams] for states in self.layers]
        self.caches = [caches[beams] for caches in self.caches]
        self.positions = self.positions[beams]
        return self


@dataclasses.dataclass
class DiJiangOutput(ModelOutput):
    """What `DiJiangForCausalLM` returns."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    state: SequenceStates | None = None


class DiJiangForCausalLM(PreTrainedModel, GenerationMixin):
    """A `Decoder` as a transformers model. Its weights are those of the folder, all checked."""

    config_class = DiJiangConfig
    base_model_prefix = "decoder"
    main_input_name = "input_ids"
    _is_stateful = True

    def __init__(self, config: DiJiangConfig, decoder: Decoder | None = None) -> None:
        super().__init__(config)
        self.decoder = decoder or Decoder(config.model_config)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        folder: str | Path,
        *args: Any,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        device_map: Any = None,
        **kwargs: Any,
    ) -> Self:
        """Load a local DiJiang folder, ours or the authors'.

        Raises:
            ModelLoadError: it cannot be loaded, and why.
        """
        wanted = dtype or torch_dtype
        if not isinstance(wanted, torch.dtype):
            wanted = getattr(torch, wanted) if wanted and wanted != "auto" else torch.float32
        device = device_map if isinstance(device_map, str) and device_map != "auto" else "cpu"
        config = DiJiangConfig(**load_config(Path(folder)).to_dict())
        model = cls(config, load_model(Path(folder), dtype=wanted, device=device))
        if (Path(folder) / "generation_config.json").is_file():
            from transformers import GenerationConfig

            model.generation_config = GenerationConfig.from_pretrained(folder)
        return model.eval()

    def save_pretrained(self, folder: str | Path, **kwargs: Any) -> None:  # type: ignore[override]
        """Write the folder that `dijiang serve` reads."""
        save_model(self.decoder, Path(folder))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        state: SequenceStates | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> DiJiangOutput:
        """Return logits [B, T, V] of token ids [B, T], and the states after them.

        Args:
            attention_mask: 0 where there is padding, which must come before the tokens. Padding
                after them needs no mask: nothing looks ahead. [B, T], or longer while generating.
            labels: Token ids, -100 where not counted; shifted inside. [B, T].
            state: What an earlier call returned; these tokens go on from it. It is changed.
            logits_to_keep: Only the last so many positions; 0 for all.
        """
        batch, length = input_ids.shape
        state = state or SequenceStates(self.decoder.config, batch, input_ids.device)
        positions = state.begin(self._is_token(input_ids, attention_mask))
        self.decoder.check_positions(int(positions.max()) + 1)
        hidden = self.decoder.hidden(input_ids.flatten(), positions.flatten(), state)
        hidden = hidden.unflatten(0, (batch, length))[:, -logits_to_keep:]
        logits = self.decoder.logits(hidden.flatten(0, 1)).unflatten(0, hidden.shape[:2])
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return DiJiangOutput(loss=loss, logits=logits, state=None if use_cache is False else state)

    def _is_token(self, input_ids: Tensor, mask: Tensor | None) -> Tensor:
        length = input_ids.shape[1]
        if mask is None:
            return torch.ones_like(input_ids, dtype=torch.bool)
        is_token = mask[:, -length:].bool()
        if bool((is_token[:, :-1] & ~is_token[:, 1:]).any()):
            raise ValueError("Padding must come before the tokens: use padding_side='left'.")
        padded = not bool(is_token.all())
        if padded and self.decoder.config.attention.decay_tables:
            raise ValueError("A model with decay tables cannot run padded batches.")
        return is_token

    def prepare_inputs_for_generation(  # type: ignore[override]
        self,
        input_ids: Tensor,
        state: SequenceStates | None = None,
        attention_mask: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> Mapping[str, Any]:
        """Only the newest token goes on from a state."""
        new = input_ids if state is None else input_ids[:, -1:]
        mask = attention_mask if state is None else None
        return {
            "input_ids": new,
            "attention_mask": mask,
            "state": state,
            "use_cache": use_cache,
            "logits_to_keep": 1,
        }

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    @staticmethod
    def _reorder_cache(state: SequenceStates, beams: Tensor) -> SequenceStates:
        return state.reorder(beams)

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.decoder.embed_tokens


def register() -> None:
    """Tell transformers' Auto classes about `model_type: dijiang`."""
    AutoConfig.register(MODEL_TYPE, DiJiangConfig, exist_ok=True)
    AutoModelForCausalLM.register(DiJiangConfig, DiJiangForCausalLM, exist_ok=True)
