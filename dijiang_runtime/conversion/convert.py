"""Turn a vanilla Transformer folder into a DiJiang folder, and say what is copied and what new."""

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dijiang_runtime.conversion.errors import ConversionError
from dijiang_runtime.conversion.folder import copy_tokenizer
from dijiang_runtime.conversion.initialise import initialise_attention
from dijiang_runtime.conversion.provenance import add_step
from dijiang_runtime.conversion.vanilla import read_config
from dijiang_runtime.models.config import MODEL_TYPE, ModelConfig, Preset
from dijiang_runtime.models.decoder import Decoder
from dijiang_runtime.models.families import config_from_parent, family_of
from dijiang_runtime.models.gpt_neox import is_authors_checkpoint
from dijiang_runtime.models.loader import save_model
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
    dtype: torch.dtype = torch.float32
    """Of the matrices on disk; decays, feature maps and norms stay float32."""
    overwrite: bool = False


@dataclass(frozen=True, slots=True)
class TensorGroup:
    """Tensors that differ by their layer alone."""

    name: str
    """With `*` for the layer."""
    shape: tuple[int, ...]
    count: int
    is_copied: bool

    @property
    def num_parameters(self) -> int:
        return self.count * torch.Size(self.shape).numel()


@dataclass(frozen=True)
class ConversionReport:
    """Which tensors of the new model are the parent's, and which are not."""

    config: ModelConfig
    groups: tuple[TensorGroup, ...]
    unused: tuple[str, ...] = field(default=())
    """Tensors of the parent that the new model has no place for."""

    @property
    def num_copied(self) -> int:
        """Parameters that are bit for bit the parent's."""
        return sum(group.num_parameters for group in self.groups if group.is_copied)

    @property
    def num_new(self) -> int:
        """Parameters that the parent does not have."""
        return sum(group.num_parameters for group in self.groups if not group.is_copied)

    def to_dict(self) -> dict[str, Any]:
        """The report in JSON's types."""
        return {
            "config": self.config.to_dict(),
            "tensors": [dataclasses.asdict(group) for group in self.groups],
            "copied_parameters": self.num_copied,
            "new_parameters": self.num_new,
            "unused": list(self.unused),
        }


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
    say = progress or (lambda line: None)
    _check_out(parent, out, options)
    hf = read_config(parent)
    _check_parent(parent, hf)
    config = config_from_parent(hf, options.preset)
    source = TensorSource(parent)
    if is_authors_checkpoint(source):
        raise ConversionError("This is already a DiJiang model, as the authors' code saves it.")
    say(f"Building a {config.family} decoder with the {config.preset} preset")
    torch.manual_seed(options.seed)
    model = Decoder(config)
    say("Copying the parent's weights")
    copied, unused = _copy(model, config, hf, source)
    initialise_attention(
        model,
        seed=options.seed,
        min_half_life=options.min_half_life,
        max_half_life=options.max_half_life,
    )
    report = ConversionReport(config, _groups(model, copied), unused)
    say(f"Writing {out}")
    _write(model, parent, out, options, report)
    return report


def _check_out(parent: Path, out: Path, options: ConvertOptions) -> None:
    if out.resolve() == parent.resolve():
        raise ConversionError("The output folder is the parent's own; choose another.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not options.overwrite:
        raise ConversionError(f"{out} exists and is not empty. Choose another, or overwrite it.")
    if out.is_dir() and any(out.iterdir()) and not (out / "config.json").is_file():
        raise ConversionError(f"{out} is not a model folder, so it is not overwritten.")


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
    model: Decoder, config: ModelConfig, hf: dict[str, Any], source: TensorSource
) -> tuple[set[str], tuple[str, ...]]:
    """Copy every tensor that the family maps; return their names and the parent's unused ones."""
    state = model.state_dict()
    copied = set()
    for name, tensor in family_of(hf).parent_weights(config, source):
        if name not in state:
            raise ConversionError(f"The decoder has no place for {name}.")
        if tensor.shape != state[name].shape:
            raise ConversionError(
                f"{name} has shape {list(tensor.shape)} in the parent's weights, but its config "
                f"asks for {list(state[name].shape)}."
            )
        if (index := first_non_finite(tensor)) is not None:
            raise ConversionError(f"The parent's {name} holds a non-finite value at {list(index)}.")
        state[name].copy_(tensor)
        copied.add(name)
    # A tied head may be stored all the same; it is the embedding.
    unread = (n for n in source.unread_names if not _RECOMPUTED.search(n))
    tied = {"lm_head.weight", "embed_out.weight"} if config.tie_word_embeddings else set()
    return copied, tuple(sorted(set(unread) - tied))


def _groups(model: Decoder, copied: set[str]) -> tuple[TensorGroup, ...]:
    """The model's tensors by name with the layer left out, in the model's order."""
    counts: dict[tuple[str, tuple[int, ...], bool], int] = {}
    for name, tensor in model.state_dict().items():
        key = (re.sub(r"layers\.\d+\.", "layers.*.", name), tuple(tensor.shape), name in copied)
        counts[key] = counts.get(key, 0) + 1
    return tuple(TensorGroup(*key[:2], count, key[2]) for key, count in counts.items())


def _write(
    model: Decoder, parent: Path, out: Path, options: ConvertOptions, report: ConversionReport
) -> None:
    if out.exists():
        shutil.rmtree(out)
    save_model(model, out, dtype=options.dtype)
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
    add_step(
        parent,
        out,
        {
            "command": "convert",
            "parent": parent.resolve().name,
            "preset": options.preset,
            "seed": options.seed,
            "copied_parameters": report.num_copied,
            "new_parameters": report.num_new,
        },
    )
