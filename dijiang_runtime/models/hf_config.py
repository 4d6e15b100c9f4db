"""Reading the `config.json` of a vanilla model, as transformers 4 and 5 write it."""

from collections.abc import Mapping
from typing import Any, Literal

from dijiang_runtime.errors import ModelLoadError, UnsupportedModelError
from dijiang_runtime.models.config import RopeScaling

Activation = Literal["gelu", "gelu_tanh", "relu", "silu"]

_ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


def integer(hf: Mapping[str, Any], key: str) -> int:
    """A required positive integer of the config."""
    value = hf.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise ModelLoadError(f"config.json needs a positive integer {key}, not {value!r}.")
    return value


def activation(name: str) -> Activation:
    """The MLP's activation, by transformers' name for it."""
    try:
        return _ACTIVATIONS[name]
    except KeyError:
        raise UnsupportedModelError(f"The activation {name!r} is not implemented.") from None


def rope_value(hf: Mapping[str, Any], key: str, default: Any) -> Any:
    """A rotary setting: under `rope_parameters` since transformers 5, at the top before."""
    parameters = hf.get("rope_parameters") or {}
    return parameters.get(key, hf.get(key, default))


def rope_scaling(hf: Mapping[str, Any]) -> RopeScaling | None:
    """The rotary scaling of the config, or None.

    Raises:
        UnsupportedModelError: a kind that is not implemented (dynamic, YaRN, LongRoPE).
    """
    scaling = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    match kind:
        case "default":
            return None
        case "linear":
            return RopeScaling(kind="linear", factor=float(scaling["factor"]))
        case "llama3":
            return RopeScaling(
                kind="llama3",
                factor=float(scaling["factor"]),
                low_freq_factor=float(scaling["low_freq_factor"]),
                high_freq_factor=float(scaling["high_freq_factor"]),
                original_max_position_embeddings=int(scaling["original_max_position_embeddings"]),
            )
    raise UnsupportedModelError(f"The rotary scaling {kind!r} is not implemented.")


def token_ids(value: Any) -> tuple[int, ...]:
    """One id, a list of them, or none, as a tuple."""
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (int(value),)
