"""`dijiang train`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

DataOption = Annotated[
    list[Path],
    typer.Option(
        help="Text file, plain or .gz; lines of <|endoftext|> separate documents. Repeatable: a "
        "file named twice is read twice as often."
    ),
]


class DtypeName(StrEnum):
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


def train(
    model: Annotated[
        Path,
        typer.Argument(help="DiJiang folder, or a vanilla one. With --config, a tokenizer folder."),
    ],
    data: DataOption,
    out: Annotated[Path, typer.Option(help="Folder of the trained model, and of checkpoints.")],
    teacher: Annotated[
        Path | None,
        typer.Option(help="Vanilla parent to learn from. Default: learn from the text alone."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="Start from random weights of this config.json, DiJiang or vanilla."),
    ] = None,
    heldout: Annotated[
        Path | None, typer.Option(help="Text file whose loss is measured at intervals.")
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens to train on.")] = 5_000_000,
    context: Annotated[int, typer.Option(min=2, help="Tokens of a training sequence.")] = 256,
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences in a step.")] = 16,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    align_fraction: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Share of the tokens that first align attention outputs with the teacher's.",
        ),
    ] = 0.0,
    align_lr: Annotated[float, typer.Option(help="Peak learning rate of that stage.")] = 3e-3,
    weight_decay: Annotated[float, typer.Option(min=0.0)] = 0.1,
    bfloat16: Annotated[
        bool, typer.Option(help="Autocast to bfloat16. Faster where the CPU has AVX512-BF16.")
    ] = False,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads. Default: one per core.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the order of the data and of random weights.")] = 0,
    evaluate_every: Annotated[
        int, typer.Option(min=1, help="Steps between held-out losses.")
    ] = 500,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 500,
    dtype: Annotated[
        DtypeName, typer.Option(help="Of the finished weights on disk.")
    ] = DtypeName.FLOAT32,
    restart: Annotated[
        bool, typer.Option(help="Begin anew, whatever the output folder holds.")
    ] = False,
) -> None:
    """Train a model on text: a converted one with its parent as teacher, or any from scratch.

    A training that was interrupted goes on from its last checkpoint when the same command is given
    again, and ends with the same weights.

    Examples:

        dijiang train pythia-dijiang --teacher pythia --data stories.txt --out trained

        dijiang train tokenizer --config config.json --data stories.txt --out parent
    """
    import torch

    from dijiang_runtime.conversion.loop import LoopOptions
    from dijiang_runtime.conversion.train import TrainOptions
    from dijiang_runtime.conversion.train import train as run_training
    from server.commands.progress import TrainDisplay

    options = TrainOptions(
        model=model,
        data=tuple(data),
        out=out,
        teacher=teacher,
        config=config,
        heldout=heldout,
        num_tokens=tokens,
        context=context,
        batch_size=batch_size,
        lr=lr,
        align_fraction=align_fraction,
        align_lr=align_lr,
        num_threads=threads,
        dtype=getattr(torch, dtype.value),
        restart=restart,
        loop=LoopOptions(
            weight_decay=weight_decay,
            bfloat16=bfloat16,
            seed=seed,
            evaluate_every=evaluate_every,
            save_every=save_every,
        ),
    )
    with TrainDisplay() as display:
        run_training(options, display.show)
    typer.echo(f"The trained model is in {out}.", err=True)
