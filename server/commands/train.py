"""`dijiang train`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from dijiang_runtime.conversion.options import LoopOptions, TrainOptions
from server.commands.options import given_options, with_config_flags


@with_config_flags(TrainOptions, LoopOptions)
def train(
    model: Annotated[
        Path,
        typer.Argument(help="DiJiang folder, or a vanilla one. With --config, a tokenizer folder."),
    ],
    *,
    flags: dict[str, Any],
) -> None:
    """Train a model on text: a converted one with its parent as teacher, or any from scratch.

    A training that was interrupted goes on from its last checkpoint when the same command is given
    again, and ends with the same weights.

    Examples:

        dijiang train pythia-dijiang --teacher pythia --data stories.txt --out trained

        dijiang train tokenizer --config config.json --data stories.txt --out parent

        accelerate launch --num_processes 4 --no_python dijiang train pythia-dijiang ...
    """
    options = given_options(
        TrainOptions, {**flags, "model": model, "loop": given_options(LoopOptions, flags)}
    )

    from dijiang_runtime.conversion.train import train as run_training
    from server.commands.progress import TrainDisplay

    with TrainDisplay() as display:
        run_training(options, display.show)
    typer.echo(f"The trained model is in {options.out}.", err=True)
