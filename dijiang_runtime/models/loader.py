"""Model folders: reading ours and the authors' layout, writing ours."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dijiang_runtime.errors import ModelLoadError
from dijiang_runtime.models import gpt_neox
from dijiang_runtime.models.config import MODEL_TYPE, ModelConfig
from dijiang_runtime.models.decoder import Decoder
from dijiang_runtime.models.shards import DEFAULT_SHARD_BYTES, ShardWriter, TensorSpec
from dijiang_runtime.models.weights import (
    INDEX_FILE,
    PACKED_KEY,
    TensorSource,
    first_non_finite,
    read_json,
)

# Small, and sensitive to rounding: float32 whatever the weights' dtype.
_ALWAYS_FLOAT32 = ("log_decay_rate", "D1", "D2", "feature_map", "norm", "window_mix")


def load_config(folder: Path) -> ModelConfig:
    """Read the config of a DiJiang folder: our own, or one that the authors' code has saved.

    Raises:
        ModelLoadError: no such folder, a vanilla model, or one that is damaged.
    """
    hf = _read_config(folder)
    if hf.get("model_type") == MODEL_TYPE:
        return ModelConfig.from_dict(hf)
    return gpt_neox.authors_config(hf, _authors_source(folder, hf))


def load_model(
    folder: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = torch.float32
) -> Decoder:
    """Load a DiJiang folder for inference.

    Args:
        folder: Our own layout, or the authors' GPT-NeoX layout. Safetensors only.
        device: Where the weights go.
        dtype: Of the matrices; None: as they are stored, and mapped rather than copied. Norms,
            feature maps and decays are float32 in any case.

    Raises:
        ModelLoadError: a tensor is missing, superfluous, misshapen or not finite.
    """
    hf = _read_config(folder)
    if hf.get("model_type") == MODEL_TYPE:
        config, source = ModelConfig.from_dict(hf), TensorSource(folder)
        if (packed := source.metadata.get(PACKED_KEY)) is not None:
            raise ModelLoadError(
                f"{folder} holds weights that are packed as {packed}, to be served. Everything "
                "else needs the folder that it was made from."
            )
        weights: Iterable[tuple[str, Tensor]] = ((n, source.get(n)) for n in sorted(source.names))
    else:
        source = _authors_source(folder, hf)
        config = gpt_neox.authors_config(hf, source)
        weights = gpt_neox.authors_weights(config, source)
    model = empty_model(config)
    fill(model, weights, dtype)
    return model.to(device).eval().requires_grad_(False)


def random_model(config: ModelConfig, *, dtype: torch.dtype = torch.float32) -> Decoder:
    """Make a model with random weights, ready for inference: speed does not depend on them."""
    return cast(Decoder(config), dtype).eval().requires_grad_(False)


def cast(model: Decoder, dtype: torch.dtype) -> Decoder:
    """Give a model's matrices a dtype, in place."""
    state = {name: _cast(name, tensor, dtype) for name, tensor in model.state_dict().items()}
    model.load_state_dict(state, strict=True, assign=True)
    return model.requires_grad_(False)


def save_model(
    model: Decoder,
    folder: Path,
    *,
    dtype: torch.dtype | None = None,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> None:
    """Write `config.json` and the weights, as `load_model` reads them.

    Args:
        model: Any decoder.
        folder: Created if needed; files of the same names are replaced.
        dtype: Of the matrices on disk. None: as they are.
        shard_bytes: Above this size the weights become several files and an index.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # A mapped file must not change under a model that still reads it.
    for old in (folder / INDEX_FILE, *folder.glob("model*.safetensors")):
        old.unlink(missing_ok=True)
    state = model.state_dict()
    writer = ShardWriter(folder, tensor_specs(model, dtype), shard_bytes=shard_bytes)
    for name, tensor in state.items():
        writer.write(name, tensor)
    save_config(model.config, folder)


def tensor_specs(model: Decoder, dtype: torch.dtype | None = None) -> dict[str, TensorSpec]:
    """Shape and dtype on disk of each of the model's tensors, in the model's order."""
    return {
        name: TensorSpec(tuple(tensor.shape), _stored_dtype(name, dtype or tensor.dtype))
        for name, tensor in model.state_dict().items()
    }


def save_config(config: ModelConfig, folder: Path) -> None:
    """Write `config.json`."""
    text = json.dumps(config.to_dict(), indent=2) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")


def empty_model(config: ModelConfig) -> Decoder:
    """A decoder without storage: names and shapes of the weights, whatever their size."""
    with torch.device("meta"), NoInitialisation():
        return Decoder(config)


class NoInitialisation(TorchFunctionMode):
    """Leaves new parameters as they are, since files fill them.

    Torch draws random numbers for tensors without storage through its compiler, and importing that
    would take longer than all the rest of loading a small model.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return None
        return func(*args, **(kwargs or {}))


def _read_config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise ModelLoadError(f"There is no model folder {folder}.")
    return read_json(folder / "config.json")


def _authors_source(folder: Path, hf: dict[str, Any]) -> TensorSource:
    source = TensorSource(folder)
    if hf.get("model_type") != "gpt_neox" or not gpt_neox.is_authors_checkpoint(source):
        raise ModelLoadError(
            f"{folder} holds a vanilla {hf.get('model_type')!r} model. "
            f"Convert it first: dijiang convert {folder} OUT."
        )
    return source


def fill(
    model: Decoder,
    weights: Iterable[tuple[str, Tensor]],
    dtype: torch.dtype | None,
    unread: frozenset[str] = frozenset(),
) -> None:
    """Give the model its weights, checking every one.

    Args:
        unread: Tensors of which only the shape is checked: looking at their numbers would read them
            from the disk.

    Raises:
        ModelLoadError: a tensor is missing, superfluous, misshapen or not finite.
    """
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    state: dict[str, Tensor] = {}
    for name, tensor in weights:
        if name not in expected:
            raise ModelLoadError(f"The weights hold an unknown tensor {name!r}.")
        if tensor.shape != expected[name]:
            raise ModelLoadError(
                f"{name} has shape {list(tensor.shape)}, but the config asks for "
                f"{list(expected[name])}."
            )
        if name not in unread and (bad := first_non_finite(tensor)) is not None:
            raise ModelLoadError(f"{name} holds a non-finite value at {list(bad)}.")
        state[name] = _cast(name, tensor, dtype or tensor.dtype)
    if missing := sorted(expected.keys() - state.keys()):
        raise ModelLoadError(f"The weights lack {len(missing)} tensors, first {missing[0]!r}.")
    model.load_state_dict(state, strict=True, assign=True)


def _cast(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(_stored_dtype(name, dtype))


def _stored_dtype(name: str, dtype: torch.dtype) -> torch.dtype:
    if dtype != torch.float64 and any(part in name for part in _ALWAYS_FLOAT32):
        return torch.float32
    return dtype
