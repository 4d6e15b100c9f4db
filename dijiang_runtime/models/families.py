"""Which module reads which vanilla architecture. A new family is one line here and one module."""

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from dijiang_runtime.errors import UnsupportedModelError
from dijiang_runtime.models import gpt_neox, llama, opt
from dijiang_runtime.models.config import ModelConfig, Preset

FAMILIES: dict[str, ModuleType] = {
    "gpt_neox": gpt_neox,
    "llama": llama,
    "mistral": llama,
    "qwen2": llama,
    "qwen3": llama,
    "opt": opt,
}
"""`model_type` of a parent's config.json to the module that converts it."""


def family_of(hf: Mapping[str, Any]) -> ModuleType:
    """The module for a parent's `config.json`.

    It has `config_from_parent(hf, preset)` and `parent_weights(config, source)`.

    Raises:
        UnsupportedModelError: an architecture that is not converted.
    """
    model_type = hf.get("model_type")
    if model_type not in FAMILIES:
        raise UnsupportedModelError(
            f"Models of type {model_type!r} cannot be converted; these can: "
            f"{', '.join(sorted(FAMILIES))}."
        )
    return FAMILIES[model_type]


def config_from_parent(hf: Mapping[str, Any], preset: Preset) -> ModelConfig:
    """Describe the DiJiang model that a vanilla parent becomes."""
    config: ModelConfig = family_of(hf).config_from_parent(hf, preset)
    return config
