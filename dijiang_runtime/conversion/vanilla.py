"""Vanilla parents: what `transformers` loads from a local folder, seen as `ids -> logits`."""

import copy
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dijiang_runtime.conversion.errors import ConversionError


@dataclass(frozen=True)
class VanillaModel:
    """A softmax-attention Transformer in float32, with its `config.json` as a dict."""

    model: Any
    config: dict[str, Any]

    @property
    def module(self) -> nn.Module:
        return self.model

    @property
    def kind(self) -> str:
        return "vanilla"

    @property
    def vocab_size(self) -> int:
        return self.model.config.vocab_size

    @property
    def eos_token_id(self) -> int | None:
        eos = self.config.get("eos_token_id")
        return eos[0] if isinstance(eos, list) else eos

    @property
    def max_length(self) -> int | None:
        return getattr(self.model.config, "max_position_embeddings", None)

    def checkpoint_gradients(self) -> None:
        self.model.gradient_checkpointing_enable({"use_reentrant": False})

    def is_trained(self, name: str) -> bool:
        return True

    def logits(self, token_ids: Tensor) -> Tensor:
        """`[B, T]` -> `[B, T, vocab]`."""
        return self.model(input_ids=token_ids, use_cache=False).logits

    def attention_blocks(self) -> list[nn.Module]:
        """The attention modules, first layer first.

        Raises:
            ConversionError: an architecture whose layers are not known.
        """
        # The name of the attention inside a layer: GPT-NeoX, then LLaMA and OPT.
        blocks = [
            module
            for name, module in self.model.named_modules()
            if re.search(r"\.layers\.\d+\.(attention|self_attn)$", name)
        ]
        if len(blocks) != self.model.config.num_hidden_layers:
            raise ConversionError(
                f"The attention blocks of a {self.config.get('model_type')!r} model are not known."
            )
        return blocks

    def save(self, folder: Path, dtype: torch.dtype) -> None:
        """Write `config.json` and safetensors, as `transformers` lays them out."""
        copy.deepcopy(self.model).to(dtype).save_pretrained(folder)


def read_config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """The folder's `config.json`, or another JSON file in it.

    Raises:
        ConversionError: there is none, or it is not a JSON object.
    """
    path = folder / name
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise ConversionError(f"{folder} has no readable {name}: {exc}.") from exc
    if not isinstance(config, dict):
        raise ConversionError(f"{path} does not hold a JSON object.")
    return config


def load_vanilla(folder: Path) -> VanillaModel:
    """Load a parent from local safetensors, without network and without remote code.

    Raises:
        ConversionError: no safetensors, or an architecture that transformers does not know.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    config = read_config(folder)
    if not any(folder.glob("*.safetensors")):
        raise ConversionError(
            f"{folder} has no .safetensors file. Weights in .bin or .pt files are pickles, which "
            "this project does not open; save the model again with safe_serialization=True."
        )
    # Its bar on standard error would mix with our own.
    transformers_logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False, dtype=torch.float32
        )
    except (OSError, ValueError, KeyError) as exc:
        raise ConversionError(f"transformers cannot load {folder}: {exc}") from exc
    return VanillaModel(model.eval(), config)


def new_vanilla(config: dict[str, Any], seed: int) -> VanillaModel:
    """A vanilla model with random weights, for training from scratch."""
    from transformers import AutoConfig, AutoModelForCausalLM

    values = dict(config)
    try:
        hf_config = AutoConfig.for_model(values.pop("model_type"), **values)
    except (KeyError, ValueError) as exc:
        raise ConversionError(f"transformers cannot build this config: {exc}.") from exc
    torch.manual_seed(seed)
    return VanillaModel(AutoModelForCausalLM.from_config(hf_config), config)
