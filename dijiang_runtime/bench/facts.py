"""What a figure is worth nothing without: the machine, the commit, the shape and the dtype."""

import platform
import subprocess
from pathlib import Path
from typing import Any

import psutil
import torch

from dijiang_runtime.errors import InvalidRequestError
from dijiang_runtime.models.config import ModelConfig, Preset
from dijiang_runtime.models.decoder import Decoder
from dijiang_runtime.models.families import config_from_parent
from dijiang_runtime.models.packed import num_parameters, weight_bytes, weight_format_of

# Published Pythia shapes: hidden, layers, heads, intermediate.
SHAPES = {
    "pythia-70m": (512, 6, 8, 2048),
    "pythia-160m": (768, 12, 12, 3072),
    "pythia-410m": (1024, 24, 16, 4096),
    "pythia-1b": (2048, 16, 8, 8192),
    "pythia-2.8b": (2560, 32, 32, 10240),
    "pythia-6.9b": (4096, 32, 32, 16384),
}


def shape_config(name: str, preset: Preset = "dijiang") -> ModelConfig:
    """The DiJiang model that a published Pythia shape becomes."""
    if name not in SHAPES:
        known = ", ".join(SHAPES)
        raise InvalidRequestError(f"shape {name!r} is not known; these are: {known}.")
    hidden, layers, heads, intermediate = SHAPES[name]
    hf = {
        "model_type": "gpt_neox",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": intermediate,
        "vocab_size": 50304,
        "max_position_embeddings": 2048,
        "rotary_pct": 0.25,
    }
    return config_from_parent(hf, preset)


def describe_model(model: Decoder) -> dict[str, Any]:
    """The shape of a model, and the dtype of its matrices."""
    config = model.config
    return {
        "family": config.family,
        "hidden_size": config.hidden_size,
        "num_layers": config.num_layers,
        "num_heads": config.num_heads,
        "vocab_size": config.vocab_size,
        "num_parameters": num_parameters(model),
        "state_bytes": config.state.num_bytes,
        "weight_bytes": weight_bytes(model),
        "dtype": weight_format_of(model),
    }


def describe_machine() -> dict[str, Any]:
    """The kind of machine, without its name."""
    return {
        "cpu": _cpu_model(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_initialized() else None,
        "cores": psutil.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": psutil.getloadavg()[0],
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": _commit(),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _commit() -> str | None:
    """The commit of a checkout; None for an installed package."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()
