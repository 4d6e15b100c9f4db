"""Checkpoints of a training, in safetensors and JSON. A crash while writing costs none of them."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dijiang_runtime.conversion.errors import TrainingError

CHECKPOINT = "checkpoint"
"""The folder of the last checkpoint, inside the output folder."""


@dataclass(frozen=True, slots=True)
class TrainingState:
    """Where a training stands."""

    step: int
    fingerprint: dict[str, Any]
    """The options that fix the result; a checkpoint is resumed only under the same ones."""


def save_checkpoint(
    out: Path, state: TrainingState, module: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Replace the checkpoint in `out` by this one."""
    folder, spare, new = out / CHECKPOINT, out / f"{CHECKPOINT}.old", out / f"{CHECKPOINT}.new"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    save_file(_detached(dict(module.named_parameters())), new / "model.safetensors")
    save_file(_moments(module, optimizer), new / "optimizer.safetensors")
    description = {"step": state.step, "fingerprint": state.fingerprint}
    (new / "training.json").write_text(json.dumps(description, indent=2) + "\n")
    # A folder cannot be replaced in one call, so the last one steps aside before the new moves in.
    shutil.rmtree(spare, ignore_errors=True)
    if folder.exists():
        os.replace(folder, spare)
    os.replace(new, folder)
    shutil.rmtree(spare, ignore_errors=True)


def read_state(out: Path) -> TrainingState | None:
    """The state of the checkpoint in `out`, or None where there is none."""
    folder = _existing(out)
    if folder is None:
        return None
    try:
        description = json.loads((folder / "training.json").read_text())
        return TrainingState(int(description["step"]), dict(description["fingerprint"]))
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise TrainingError(f"The checkpoint in {folder} cannot be read: {exc}.") from exc


def restore_module(out: Path, module: nn.Module) -> None:
    """Set the parameters of `module` to those of the checkpoint."""
    tensors = _load(out, "model.safetensors")
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(_take(tensors, name, parameter))


def restore_optimizer(out: Path, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Set the moments of the parameters that `optimizer` holds to those of the checkpoint."""
    tensors = _load(out, "optimizer.safetensors")
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            optimizer.state[parameter] = {
                "step": tensors[f"{name}.step"].to(parameter.device),
                "exp_avg": _take(tensors, f"{name}.exp_avg", parameter),
                "exp_avg_sq": _take(tensors, f"{name}.exp_avg_sq", parameter),
            }


def delete_checkpoint(out: Path) -> None:
    """Remove what `save_checkpoint` left; the finished model needs none of it."""
    for name in (CHECKPOINT, f"{CHECKPOINT}.old", f"{CHECKPOINT}.new"):
        shutil.rmtree(out / name, ignore_errors=True)


def _existing(out: Path) -> Path | None:
    for name in (CHECKPOINT, f"{CHECKPOINT}.old"):
        if (out / name / "training.json").is_file():
            return out / name
    return None


def _load(out: Path, name: str) -> dict[str, Tensor]:
    folder = _existing(out)
    try:
        return load_file(folder / name) if folder is not None else {}
    except (OSError, SafetensorError) as exc:
        raise TrainingError(f"The checkpoint in {folder} cannot be read: {exc}.") from exc


def _take(tensors: Mapping[str, Tensor], name: str, like: Tensor) -> Tensor:
    if name not in tensors or tensors[name].shape != like.shape:
        raise TrainingError(f"The checkpoint does not fit the model at {name}.")
    return tensors[name].to(like.device)


def _moments(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    moments = {}
    for name, parameter in module.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            moments[f"{name}.{key}"] = value
    return _detached(moments)


def _detached(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
