"""A model folder as the engine runs it: on a device, in a dtype, compiled where it can be."""

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from dijiang_runtime.errors import ModelLoadError
from dijiang_runtime.models import compiled
from dijiang_runtime.models.compiled import (
    NUM_PENDING_TOKENS,
    CompiledDecoder,
    compile_packed,
    prepare,
)
from dijiang_runtime.models.config import ModelConfig
from dijiang_runtime.models.decoder import Decoder
from dijiang_runtime.models.fused import FusedDecoder, is_covered
from dijiang_runtime.models.graphed import CudaRecorder, GraphedDecoder, sizes_to_record
from dijiang_runtime.models.loader import cast, load_model
from dijiang_runtime.models.packed import PackedLinear
from dijiang_runtime.models.packed_folder import load_packed, packed_format
from dijiang_runtime.ops import cpu
from dijiang_runtime.ops.cpu.library import Context
from dijiang_runtime.ops.cpu.packed import WeightFormat
from dijiang_runtime.ops.cpu.sampling import LogitKernels

DtypeChoice = Literal["auto", "float32", "bfloat16", "int8"]

ServingModel = Decoder | CompiledDecoder | FusedDecoder | GraphedDecoder


def decoder_of(model: ServingModel) -> Decoder:
    """The modules that hold a model's weights."""
    return model if isinstance(model, Decoder) else model.model


AUTO_FORMAT: WeightFormat = "int8"
"""What `auto` means on the CPU: the fastest whose loss on held-out text is within 0.5 % of
float32's. `dijiang eval --dtype` measures it; docs/performance.md has the figures."""


def load_for_serving(
    folder: Path, device: torch.device, dtype: DtypeChoice
) -> tuple[ServingModel, str]:
    """Return a model ready for the engine, and the dtype of its matrices.

    Raises:
        ModelLoadError: the folder cannot be loaded, or not in this dtype here.
    """
    if (stored := packed_format(folder)) is None:
        return serve_in(load_model(folder, dtype=None), device, dtype)
    if device.type != "cpu" or not cpu.is_available():
        raise ModelLoadError(
            f"{folder} is packed for the compiled CPU kernels: device cpu, and a C++ compiler when "
            "this was installed. Or serve the folder that it was made from."
        )
    if dtype not in ("auto", stored):
        raise ModelLoadError(
            f"{folder} is packed as {stored}, so dtype cannot be {dtype}. Leave it at auto, or "
            "serve the folder that it was made from."
        )
    context = cpu.context()
    return serve_packed(load_packed(folder, context), context), stored


def serve_packed(model: Decoder, context: Context) -> Decoder | CompiledDecoder:
    """Make a model whose matrices are packed ready for the engine. See `serve_in`."""
    return _alone(compile_packed(model, context))


def _alone(model: Decoder | CompiledDecoder) -> Decoder | CompiledDecoder:
    """Leave torch one thread where it has nothing to do."""
    if isinstance(model, CompiledDecoder):
        torch.set_num_threads(1)
    return model


def num_pending_tokens(config: ModelConfig) -> int:
    """Tokens that states may lag behind where the CPU serves such a model."""
    return NUM_PENDING_TOKENS if cpu.is_available() and compiled.is_covered(config) else 0


def packing_of(device: torch.device, dtype: DtypeChoice) -> WeightFormat | None:
    """The format that matrices are packed in to be served there; None where they are not packed."""
    if device.type != "cpu" or not cpu.is_available():
        return None
    return AUTO_FORMAT if dtype == "auto" else dtype


def serve_in(model: Decoder, device: torch.device, dtype: DtypeChoice) -> tuple[ServingModel, str]:
    """Make a model that is as it was stored ready for the engine, and name the dtype it got.

    The compiled kernels take as many threads as torch has. Where they run the whole step, torch is
    left with one: its threads wait for work by spinning, on the cores that the kernels need.
    """
    if (weight_format := packing_of(device, dtype)) is not None:
        return _alone(prepare(model, weight_format)), weight_format
    half = "bfloat16" if device.type == "cuda" else "float32"
    chosen = half if dtype == "auto" else dtype
    if chosen == "int8":
        raise ModelLoadError(
            "dtype int8 needs the compiled CPU kernels: device cpu, and a C++ compiler when this "
            "was installed. Or choose float32 or bfloat16."
        )
    model = cast(model, getattr(torch, chosen)).to(device)
    if device.type == "cuda" and is_covered(model.config):
        return FusedDecoder(model), chosen
    return model, chosen


def logit_kernels(model: ServingModel) -> LogitKernels | None:
    """The compiled kernels that choose a model's tokens, in the threads that compute it.

    None where torch computes the model, and so chooses them, too.
    """
    for module in decoder_of(model).modules():
        if isinstance(module, PackedLinear):
            return LogitKernels(module.context or cpu.context())
    return None


def record_steps(model: ServingModel, states: Tensor, scratch: tuple[int, int]) -> ServingModel:
    """Record decode steps over these states where that can be done: see `graphed.py`.

    Args:
        states: The engine's. Shape [layers, rows, H, K, V], two rows to a slot.
        scratch: The two rows of the slot that padding may use.
    """
    if not isinstance(model, FusedDecoder) or not states.is_cuda:
        return model
    num_slots = states.shape[1] // 2 - 1
    return GraphedDecoder(model, states, scratch, CudaRecorder(), sizes_to_record(num_slots))
