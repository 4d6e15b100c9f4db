"""`dijiang tokenizer` and `sample`."""

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
