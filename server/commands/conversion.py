"""`dijiang tokenizer`, `eval` and `sample`."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from server.commands.progress import progress_bar

DataOption = Annotated[
    list[str],
    typer.Option(
        help="Text: .txt, .jsonl, .parquet, plain or .gz, or datasets:ID[:CONFIG][:SPLIT]. "
        "Repeatable."
    ),
]


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
