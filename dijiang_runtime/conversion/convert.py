"""Turn a vanilla Transformer folder into a DiJiang folder, and say what is copied and what new."""

import dataclasses
import json
import math
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dijiang_runtime.conversion.calibrate import Calibration, CalibrationOptions, inverse_silu
from dijiang_runtime.conversion.dijiang_model import load_dijiang
from dijiang_runtime.conversion.errors import ConversionError
from dijiang_runtime.conversion.folder import (
    check_out,
    copy_tokenizer,
    new_folder,
)
from dijiang_runtime.conversion.initialise import AttentionStart, new_attention_tensors
from dijiang_runtime.conversion.provenance import add_step
from dijiang_runtime.conversion.report import ConversionReport, tensor_groups
from dijiang_runtime.conversion.vanilla import read_config
from dijiang_runtime.models.config import MODEL_TYPE, ModelConfig, Preset
from dijiang_runtime.models.families import config_from_parent, family_of
from dijiang_runtime.models.gpt_neox import is_authors_checkpoint
from dijiang_runtime.models.loader import empty_model, save_config, tensor_specs
from dijiang_runtime.models.shards import DEFAULT_SHARD_BYTES, ShardWriter, TensorSpec
from dijiang_runtime.models.weights import TensorSource, first_non_finite

# Buffers that old checkpoints stored; they are recomputed from the config.
_RECOMPUTED = re.compile(r"(inv_freq|masked_bias|attention\.bias)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertOptions:
    """What the attention becomes. The same options give the same weights."""

    preset: Preset = "dijiang"
    seed: int = 0
    """Of the feature maps, and of the gate in the `official` preset."""
    min_half_life: float = 1.0
    """Tokens after which the fastest head has forgotten half (`dijiang` preset)."""
    max_half_life: float = 512.0
    """The same for the slowest head."""
    calibrate: tuple[Path, ...] = ()
    """Text files: half-lives and output scales come from the parent's attention on them."""
    dtype: torch.dtype = torch.float32
    """Of the matrices on disk; decays, feature maps and norms stay float32."""
    shard_bytes: int = DEFAULT_SHARD_BYTES
    """Above this size the weights become several files and an index."""
    hub: str | None = None
    """`owner/name@commit` of a parent from the hub, for the card."""
    overwrite: bool = False


def convert(
    parent: Path,
    out: Path,
    options: ConvertOptions | None = None,
    progress: Callable[[str], None] | None = None,
) -> ConversionReport:
    """Convert a vanilla folder to a DiJiang folder that can be trained, evaluated and served.

    Until it is trained the new model writes nonsense: its attention is not the parent's.

    Args:
        progress: called with a line for each phase.

    Raises:
        ConversionError: the folders cannot be used, or the weights do not fit the config.
        UnsupportedModelError: an architecture or option that is not implemented.
        ModelLoadError: no safetensors, or damaged ones.
    """
    options = options or ConvertOptions()
    out = out.resolve()
    say = progress or (lambda line: None)
    check_out(parent, out, overwrite=options.overwrite)
    hf = read_config(parent)
    _check_parent(parent, hf)
    config = config_from_parent(hf, options.preset)
    source = TensorSource(parent, keep_mapped=False)
    if is_authors_checkpoint(source):
        raise ConversionError("This is already a DiJiang model, as the authors' code saves it.")
    say(f"Converting a {config.family} model to the {config.preset} preset, tensor by tensor")
    calibration = _calibration(parent, config, options, say)
    with new_folder(out) as folder:
        specs = tensor_specs(empty_model(config), options.dtype)
        writer = ShardWriter(folder, specs, shard_bytes=options.shard_bytes)
        copied = _copy(family_of(hf).parent_weights(config, source), specs, writer)
        say(f"Copied {len(copied)} tensors; adding what linear attention needs")
        half_lives = _add_new(config, options, calibration, writer)
        unused = _unused(config, source)
        report = ConversionReport(config, tensor_groups(specs, copied), unused)
        _write_rest(parent, folder, report)
        if calibration is not None:
            say("Scaling every head's output to the parent's")
            _scale_outputs(folder, config, calibration, writer)
        add_step(parent, folder, _step(parent, options, report, half_lives), name=out.name)
        say(f"Writing {out}")
    return report


def _check_parent(parent: Path, hf: dict[str, Any]) -> None:
    if hf.get("model_type") == MODEL_TYPE:
        raise ConversionError("This is already a DiJiang model.")
    if "quantization_config" in hf:
        raise ConversionError("The parent's weights are quantized. Convert the original weights.")
    if not (parent / "tokenizer.json").is_file():
        raise ConversionError(
            f"{parent} has no tokenizer.json. Save the fast tokenizer beside the weights: "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...)."
        )


def _copy(
    weights: Iterable[tuple[str, Tensor]], specs: Mapping[str, TensorSpec], writer: ShardWriter
) -> set[str]:
    """Copy every tensor that the family maps, one at a time; return their names."""
    copied = set()
    for name, tensor in weights:
        if name not in specs:
            raise ConversionError(f"The decoder has no place for {name}.")
        if tuple(tensor.shape) != specs[name].shape:
            raise ConversionError(
                f"{name} has shape {list(tensor.shape)} in the parent's weights, but its config "
                f"asks for {list(specs[name].shape)}."
            )
        if (index := first_non_finite(tensor)) is not None:
            raise ConversionError(f"The parent's {name} holds a non-finite value at {list(index)}.")
        writer.write(name, tensor)
        copied.add(name)
    return copied


def _calibration(
    parent: Path, config: ModelConfig, options: ConvertOptions, say: Callable[[str], None]
) -> Calibration | None:
    if not options.calibrate:
        return None
    if config.preset == "official":
        raise ConversionError("The official preset fixes decays and gate; drop --calibrate.")
    say("Watching the parent's attention on the calibration text")
    return Calibration(parent, CalibrationOptions(data=options.calibrate))


def _add_new(
    config: ModelConfig,
    options: ConvertOptions,
    calibration: Calibration | None,
    writer: ShardWriter,
) -> list[list[float]]:
    """Write what the parent does not have, all in the attention; return half-lives by layer."""
    start = AttentionStart(
        seed=options.seed,
        min_half_life=options.min_half_life,
        max_half_life=options.max_half_life,
        half_lives=calibration.half_lives(config.num_kv_heads) if calibration else None,
    )
    used: list[list[float]] = []
    for layer in range(config.num_layers):
        missing = writer.missing
        for name, tensor in new_attention_tensors(config, layer, start):
            if (full_name := f"layers.{layer}.attention.{name}") in missing:
                writer.write(full_name, tensor)
            if name == "log_decay_rate":
                used.append([float(f"{h:.4g}") for h in math.log(2) / tensor.exp()])
    if missing := writer.missing:
        raise ConversionError(f"The parent gives no value to {sorted(missing)[0]}.")
    return used


def _unused(config: ModelConfig, source: TensorSource) -> tuple[str, ...]:
    # A tied head may be stored all the same; it is the embedding.
    tied = {"lm_head.weight", "embed_out.weight"} if config.tie_word_embeddings else set()
    unread = {name for name in source.unread_names if not _RECOMPUTED.search(name)}
    return tuple(sorted(unread - tied))


def _scale_outputs(
    folder: Path, config: ModelConfig, calibration: Calibration, writer: ShardWriter
) -> None:
    """Start each head's gate, which has a bias of its own, at the calibrated scale."""
    scales = calibration.output_scales(load_dijiang(folder))
    for layer, bias in enumerate(inverse_silu(scales)):
        by_channel = bias.repeat_interleave(config.head_dim)
        writer.write(f"layers.{layer}.attention.gate.bias", by_channel)


def _write_rest(parent: Path, out: Path, report: ConversionReport) -> None:
    save_config(report.config, out)
    copy_tokenizer(parent, out)
    generation = parent / "generation_config.json"
    if generation.is_file():
        shutil.copyfile(generation, out / "generation_config.json")
    else:
        ids = {
            "bos_token_id": report.config.bos_token_id,
            "eos_token_id": list(report.config.eos_token_ids) or None,
        }
        text = json.dumps({key: value for key, value in ids.items() if value is not None})
        (out / "generation_config.json").write_text(text + "\n")


def _step(
    parent: Path, options: ConvertOptions, report: ConversionReport, half_lives: list[list[float]]
) -> dict[str, Any]:
    """What the provenance keeps of this conversion."""
    return {
        "command": "convert",
        "parent": options.hub.split("@")[0] if options.hub else parent.resolve().name,
        "hub": options.hub,
        "preset": options.preset,
        "seed": options.seed,
        "calibrated_on": [path.name for path in options.calibrate] or None,
        "dtype": str(options.dtype).removeprefix("torch."),
        "copied_parameters": report.num_copied,
        "new_parameters": report.num_new,
        "half_lives": half_lives,
        "tensors": [dataclasses.asdict(group) for group in report.groups],
    }
