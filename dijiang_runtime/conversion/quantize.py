"""A DiJiang folder to one with packed matrices, and what that costs on held-out text."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dijiang_runtime.conversion.errors import ConversionError
from dijiang_runtime.conversion.evaluate import EvaluateOptions, evaluate
from dijiang_runtime.conversion.folder import (
    check_out,
    copy_generation_config,
    copy_tokenizer,
    new_folder,
)
from dijiang_runtime.conversion.provenance import add_step
from dijiang_runtime.conversion.vanilla import read_config
from dijiang_runtime.errors import ModelLoadError
from dijiang_runtime.models.loader import load_config
from dijiang_runtime.models.packed_folder import pack_folder
from dijiang_runtime.models.shards import DEFAULT_SHARD_BYTES
from dijiang_runtime.ops import cpu
from dijiang_runtime.ops.cpu.packed import WeightFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeOptions:
    """How matrices are packed."""

    weight_format: WeightFormat
    shard_bytes: int = DEFAULT_SHARD_BYTES
    data: tuple[str, ...] = ()
    """Text on which to measure what it costs; none is measured without."""
    max_tokens: int | None = None
    overwrite: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationCost:
    """Losses in nats per token, of the same text."""

    float32_loss: float
    packed_loss: float
    float32_perplexity: float
    packed_perplexity: float
    num_tokens: int


def quantize(
    folder: Path, out: Path, options: QuantizeOptions, say: Callable[[str], object]
) -> QuantizationCost | None:
    """Write a folder that `dijiang serve` maps instead of packing it at every start.

    Returns:
        What it costs, where there is text to measure that on.

    Raises:
        ConversionError: `folder` is not a DiJiang model, or `out` cannot be written.
        ModelLoadError: `folder` cannot be loaded, or is packed already.
        DataError: the text cannot be used.
    """
    check_out(folder, out, overwrite=options.overwrite)
    if not cpu.is_available():
        raise ConversionError("Packing needs the compiled CPU kernels; there was no C++ compiler.")
    _check_is_dijiang(folder)
    with new_folder(out) as new:
        say(f"Packing as {options.weight_format}, matrix by matrix")
        pack_folder(folder, new, options.weight_format, shard_bytes=options.shard_bytes)
        copy_tokenizer(folder, new)
        copy_generation_config(folder, new)
        cost = _measure(folder, new, options, say) if options.data else None
        step: dict[str, Any] = {"command": "quantize", "format": options.weight_format}
        add_step(folder, new, step | (asdict(cost) if cost else {}), name=out.name)
    return cost


def _check_is_dijiang(folder: Path) -> None:
    try:
        load_config(folder)
    except ModelLoadError:
        if folder.is_dir() and read_config(folder):
            raise ConversionError(
                f"{folder} is not a DiJiang model. Convert it and train it first; then quantize "
                "what came out: dijiang convert TRAINED OUT --quantize int8."
            ) from None
        raise


def _measure(
    folder: Path, packed: Path, options: QuantizeOptions, say: Callable[[str], object]
) -> QuantizationCost:
    say("Measuring the loss in float32, and packed")
    limit = options.max_tokens
    before = evaluate(folder, options.data, EvaluateOptions(max_tokens=limit, dtype="float32"))
    after = evaluate(packed, options.data, EvaluateOptions(max_tokens=limit))
    return QuantizationCost(
        float32_loss=before.loss,
        packed_loss=after.loss,
        float32_perplexity=before.perplexity,
        packed_perplexity=after.perplexity,
        num_tokens=before.num_tokens,
    )
