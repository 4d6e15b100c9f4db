"""`dijiang convert`."""

import json
import re
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from server.commands.common import PresetName, fail

if TYPE_CHECKING:
    from dijiang_runtime.conversion.report import ConversionReport

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


class DtypeName(StrEnum):
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class QuantizeName(StrEnum):
    INT8 = "int8"
    BFLOAT16 = "bfloat16"


def byte_size(text: str) -> int:
    """A size like `500MB` or `2GiB` in bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) *([KMG]?I?B)?", text.strip().upper())
    unit = (match[2] or "") if match else None
    if match is None or unit not in _UNITS or (size := float(match[1]) * _UNITS[unit]) < 1:
        raise typer.BadParameter(f"{text!r} is no size; write one like 500MB or 5GB.")
    return round(size)


def convert(
    ctx: typer.Context,
    parent: Annotated[
        str, typer.Argument(help="Vanilla model folder with safetensors, or a hub id.")
    ],
    out: Annotated[Path, typer.Argument(help="Folder of the DiJiang model.")],
    preset: Annotated[
        PresetName,
        typer.Option(
            help="dijiang: trains best of the linear ones. dijiang+window: keeps softmax attention "
            "over the last 64 tokens. official: the authors' operator, bit-faithful."
        ),
    ] = PresetName.DIJIANG,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")] = None,
    seed: Annotated[int, typer.Option(help="Of what the parent does not have.")] = 0,
    min_half_life: Annotated[
        float, typer.Option(min=0.1, help="Memory of the fastest head, in tokens.")
    ] = 1.0,
    max_half_life: Annotated[
        float, typer.Option(min=0.1, help="Memory of the slowest head, in tokens.")
    ] = 512.0,
    calibrate: Annotated[
        list[Path] | None,
        typer.Option(
            help="Text file: take memories and output scales from the parent's attention on it. "
            "Loads the parent as a whole. Repeatable."
        ),
    ] = None,
    dtype: Annotated[DtypeName, typer.Option(help="Of the weights on disk.")] = DtypeName.FLOAT32,
    shard_size: Annotated[
        int, typer.Option(parser=byte_size, metavar="SIZE", help="Cut larger weights into files.")
    ] = "5GB",  # type: ignore[assignment]
    overwrite: Annotated[bool, typer.Option(help="Replace an existing output folder.")] = False,
    quantize: Annotated[
        QuantizeName | None,
        typer.Option(
            help="PARENT is a DiJiang model: pack its matrices for the CPU, to be mapped by serve."
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="With --quantize: text to measure on what it costs. Repeatable."),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="With --data: stop after these.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Turn a pretrained Transformer into a DiJiang model, ready to be trained.

    GPT-NeoX (Pythia), LLaMA, Mistral, Qwen2, Qwen3 and OPT models are converted, from a local
    folder or from the Hugging Face hub, tensor by tensor, so that a model larger than memory can
    be. The new model writes nonsense until `dijiang train` has taught its attention.

    Example:

        dijiang convert EleutherAI/pythia-70m pythia-70m-dijiang

        dijiang convert trained trained-int8 --quantize int8 --data heldout.txt
    """
    if quantize is not None:
        _refuse_others(ctx)
        _quantize(Path(parent), out, quantize, shard_size, data, max_tokens, overwrite, as_json)
        return
    if data or max_tokens:
        fail("--data and --max-tokens go with --quantize.", exit_code=2)
    import torch

    from dijiang_runtime.conversion.convert import ConvertOptions
    from dijiang_runtime.conversion.convert import convert as run_conversion
    from dijiang_runtime.conversion.parents import find_parent

    found = find_parent(parent, revision)
    options = ConvertOptions(
        preset=preset.value,
        seed=seed,
        min_half_life=min_half_life,
        max_half_life=max_half_life,
        calibrate=tuple(calibrate or ()),
        dtype=getattr(torch, dtype.value),
        shard_bytes=shard_size,
        hub=found.hub,
        overwrite=overwrite,
    )
    report = run_conversion(found.folder, out, options, lambda line: typer.echo(line, err=True))
    if as_json:
        typer.echo(json.dumps(report.to_dict(), indent=2))
    else:
        _print_report(report)


def _refuse_others(ctx: typer.Context) -> None:
    """Leave with a message if an option was given that packing has no use for."""
    decided = "preset revision seed min_half_life max_half_life calibrate dtype".split()
    for name in decided:
        source = ctx.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option = name.replace("_", "-")
            fail(f"--{option} is for conversions; --quantize packs a model as it is.", exit_code=2)


def _quantize(
    folder: Path,
    out: Path,
    weight_format: QuantizeName,
    shard_bytes: int,
    data: list[str] | None,
    max_tokens: int | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    from dijiang_runtime.conversion.quantize import QuantizeOptions
    from dijiang_runtime.conversion.quantize import quantize as run_quantization

    options = QuantizeOptions(
        weight_format=weight_format.value,
        shard_bytes=shard_bytes,
        data=tuple(data or ()),
        max_tokens=max_tokens,
        overwrite=overwrite,
    )
    cost = run_quantization(folder, out, options, lambda line: typer.echo(line, err=True))
    size = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    if as_json:
        found = {} if cost is None else asdict(cost)
        typer.echo(json.dumps({"weights_bytes": size, **found}, indent=2))
        return
    typer.echo(f"{size:,} bytes of weights in {out}, to be mapped by dijiang serve.")
    if cost is None:
        typer.echo(f"What it costs: dijiang eval {out} --data TEXT, beside the same of {folder}.")
        return
    share = cost.packed_loss / cost.float32_loss - 1
    typer.echo(
        f"loss {cost.float32_loss:.5f} in float32, {cost.packed_loss:.5f} packed ({share:+.2%}); "
        f"perplexity {cost.float32_perplexity:.4f}, {cost.packed_perplexity:.4f}; "
        f"{cost.num_tokens:,} tokens"
    )


def _print_report(report: "ConversionReport") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("tensor", "shape", "layers", "parameters", "from")
    for group in report.groups:
        shape = " x ".join(str(size) for size in group.shape)
        origin = "parent" if group.is_copied else "new"
        table.add_row(group.name, shape, str(group.count), f"{group.num_parameters:,}", origin)
    console = Console()
    console.print(table)
    console.print(f"{report.num_copied:,} parameters copied, {report.num_new:,} new.")
    if report.unused:
        console.print(f"Not used: {', '.join(report.unused)}")
