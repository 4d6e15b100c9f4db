"""`dijiang tokenizer`, `convert`, `eval` and `sample`."""

import dataclasses
import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from server.commands.progress import progress_bar
from server.commands.train import DataOption, DtypeName

if TYPE_CHECKING:
    from dijiang_runtime.conversion.convert import ConversionReport


class PresetName(StrEnum):
    DIJIANG = "dijiang"
    OFFICIAL = "official"


def tokenizer(
    data: DataOption,
    out: Annotated[Path, typer.Option(help="Folder for tokenizer.json and its config.")],
    vocab_size: Annotated[int, typer.Option(min=257, help="Tokens to learn.")] = 2048,
) -> None:
    """Train a byte-level BPE tokenizer on text files.

    Example:

        dijiang tokenizer --data stories.txt --out my-tokenizer --vocab-size 2048
    """
    from dijiang_runtime.conversion.tokenizer import train_tokenizer

    trained = train_tokenizer(data, out, vocab_size=vocab_size)
    typer.echo(f"{out} holds a tokenizer of {trained.get_vocab_size()} tokens.")


def convert(
    parent: Annotated[Path, typer.Argument(help="Vanilla model folder with safetensors.")],
    out: Annotated[Path, typer.Argument(help="Folder of the DiJiang model.")],
    preset: Annotated[
        PresetName,
        typer.Option(help="dijiang: trains best. official: the authors' operator, bit-faithful."),
    ] = PresetName.DIJIANG,
    seed: Annotated[int, typer.Option(help="Of what the parent does not have.")] = 0,
    min_half_life: Annotated[
        float, typer.Option(min=0.1, help="Memory of the fastest head, in tokens.")
    ] = 1.0,
    max_half_life: Annotated[
        float, typer.Option(min=0.1, help="Memory of the slowest head, in tokens.")
    ] = 512.0,
    dtype: Annotated[DtypeName, typer.Option(help="Of the weights on disk.")] = DtypeName.FLOAT32,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing output folder.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Turn a pretrained Transformer into a DiJiang model, ready to be trained.

    GPT-NeoX (Pythia), LLaMA, Mistral, Qwen2 and OPT folders are converted. The new model writes
    nonsense until `dijiang train` has taught its attention.

    Example:

        dijiang convert pythia-70m pythia-70m-dijiang
    """
    import torch

    from dijiang_runtime.conversion.convert import ConvertOptions
    from dijiang_runtime.conversion.convert import convert as run_conversion

    options = ConvertOptions(
        preset=preset.value,
        seed=seed,
        min_half_life=min_half_life,
        max_half_life=max_half_life,
        dtype=getattr(torch, dtype.value),
        overwrite=overwrite,
    )
    report = run_conversion(parent, out, options, lambda line: typer.echo(line, err=True))
    if as_json:
        typer.echo(json.dumps(report.to_dict(), indent=2))
    else:
        _print_report(report)


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


def evaluate(
    model: Annotated[Path, typer.Argument(help="DiJiang folder, or a vanilla one.")],
    data: DataOption,
    context: Annotated[int, typer.Option(min=1, help="Tokens that a prediction may see.")] = 256,
    batch_size: Annotated[int, typer.Option(min=1)] = 16,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Stop after these.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Measure loss and perplexity of a model, or of its vanilla parent, on text.

    Example:

        dijiang eval pythia-70m-dijiang --data heldout.txt --json
    """
    from dijiang_runtime.conversion.evaluate import EvaluateOptions
    from dijiang_runtime.conversion.evaluate import evaluate as run_evaluation

    options = EvaluateOptions(context=context, batch_size=batch_size, max_tokens=max_tokens)
    with progress_bar("Evaluating") as advance:
        result = run_evaluation(model, data, options, advance)
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(result), indent=2))
        return
    typer.echo(
        f"loss        {result.loss:.4f} nats per token\n"
        f"perplexity  {result.perplexity:.3f}\n"
        f"tokens      {result.num_tokens:,}, {result.context} to a block\n"
        f"model       {result.kind}, {result.num_parameters:,} parameters"
    )


def sample(
    parent: Annotated[Path, typer.Argument(help="Vanilla model folder with safetensors.")],
    out: Annotated[Path, typer.Argument(help="Text file to write.")],
    megabytes: Annotated[float, typer.Option(min=0.001, help="Size of the text.")] = 5.0,
    temperature: Annotated[float, typer.Option(min=0.01)] = 0.8,
    top_p: Annotated[float, typer.Option(min=0.01, max=1.0)] = 0.95,
    batch_size: Annotated[int, typer.Option(min=1)] = 256,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Let a vanilla parent write training text, where a file holds too little of it.

    Example:

        dijiang sample stories260K sampled.txt --megabytes 5
    """
    from dijiang_runtime.conversion.sampling import SamplingOptions, sample_documents

    num_bytes = round(megabytes * 1e6)
    options = SamplingOptions(
        num_bytes=num_bytes,
        temperature=temperature,
        top_p=top_p,
        batch_size=batch_size,
        seed=seed,
    )
    with progress_bar("Sampling") as advance:
        num_documents = sample_documents(
            parent, out, options, lambda written: advance(min(written, num_bytes), num_bytes)
        )
    typer.echo(f"{out} holds {num_documents:,} documents.")
