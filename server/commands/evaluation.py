"""`dijiang eval` and `dijiang compare`."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.commands.common import fail
from server.commands.conversion import DataOption
from server.commands.progress import progress_bar

if TYPE_CHECKING:
    from rich.table import Table

    from dijiang_runtime.conversion.compare import Measured


class Task(StrEnum):
    LOSS = "loss"
    LAST_WORD = "last-word"
    RECALL = "recall"


class WeightDtype(StrEnum):
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    INT8 = "int8"


def evaluate(
    model: Annotated[Path, typer.Argument(help="DiJiang folder, or a vanilla one.")],
    data: DataOption,
    task: Annotated[
        Task,
        typer.Option(
            help="loss: loss and perplexity, by position. last-word: would it have written the "
            "last word of each document? recall: does it still know what it read so long ago?"
        ),
    ] = Task.LOSS,
    context: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Tokens that a prediction may see. Default: 256, or as many as the model has "
            "positions for.",
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Default: about 4,096 tokens.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Stop after these.")] = None,
    dtype: Annotated[
        WeightDtype | None,
        typer.Option(help="With --task loss: a DiJiang model as it is served in this dtype."),
    ] = None,
    distance: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Recall from so many tokens ago. Repeatable."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Measure a model, or its vanilla parent, on text.

    Examples:

        dijiang eval pythia-70m-dijiang --data heldout.txt --json

        dijiang eval pythia-70m-dijiang --data heldout.txt --dtype int8

        dijiang eval pythia-70m-dijiang --data lambada.jsonl --task last-word

        dijiang eval pythia-70m-dijiang --data heldout.txt --task recall --distance 64
    """
    if dtype is not None and task is not Task.LOSS:
        fail("--dtype goes with --task loss.", exit_code=2)
    with progress_bar("Evaluating") as advance:
        match task:
            case Task.LOSS:
                lines = _loss(model, data, context, batch_size, max_tokens, dtype, advance)
            case Task.LAST_WORD:
                lines = _last_word(model, data, context, batch_size, advance)
            case Task.RECALL:
                lines = _recall(model, data, distance, batch_size, advance)
    result = next(lines)
    typer.echo(json.dumps(result, indent=2) if as_json else "\n".join(lines))


def _loss(
    model: Path,
    data: list[str],
    context: int | None,
    size: int | None,
    limit: int | None,
    dtype: WeightDtype | None,
    advance: Any,
) -> Iterator[Any]:
    """The result as JSON has it, then the lines that show it; so do the other two."""
    from dijiang_runtime.conversion.evaluate import EvaluateOptions
    from dijiang_runtime.conversion.evaluate import evaluate as run_evaluation

    options = EvaluateOptions(
        context=context,
        batch_size=size,
        max_tokens=limit,
        dtype=None if dtype is None else dtype.value,
    )
    result = run_evaluation(model, data, options, advance)
    yield dataclasses.asdict(result)
    yield f"loss        {result.loss:.4f} nats per token"
    yield f"perplexity  {result.perplexity:.3f}"
    yield f"tokens      {result.num_tokens:,}, {result.context} to a block"
    served = "" if dtype is None else f", served in {dtype.value}"
    yield f"model       {result.kind}, {result.num_parameters:,} parameters{served}"
    for bucket in result.by_position:
        place = f"{bucket.start + 1}..{bucket.stop}"
        yield f"  {place:>12} tokens seen  loss {bucket.loss:.4f}  ppl {bucket.perplexity:.3f}"


def _last_word(
    model: Path, data: list[str], context: int | None, size: int | None, advance: Any
) -> Iterator[Any]:
    from dijiang_runtime.conversion.last_word import LastWordOptions, last_word_accuracy

    options = LastWordOptions(context=context, batch_size=size or 16)
    result = last_word_accuracy(model, data, options, advance)
    yield dataclasses.asdict(result)
    yield f"accuracy    {100 * result.accuracy:.1f} % of {result.num_passages:,} passages"
    yield f"perplexity  {result.perplexity:.3f} a word"


def _recall(
    model: Path, data: list[str], distances: list[int] | None, size: int | None, advance: Any
) -> Iterator[Any]:
    from dijiang_runtime.conversion.recall import RecallOptions, recall_of_folder

    options = RecallOptions(batch_size=size or 16)
    if distances:
        options = dataclasses.replace(options, distances=tuple(sorted(set(distances))))
    found = recall_of_folder(model, data, options, advance)
    yield [dataclasses.asdict(recall) | {"gain": recall.gain} for recall in found]
    yield "distance  accuracy  without the needle  nats gained"
    for recall in found:
        yield (
            f"{recall.distance:8,}  {100 * recall.accuracy:6.1f} %  "
            f"{100 * recall.control_accuracy:16.1f} %  {recall.gain:11.3f}"
        )


def compare(
    parent: Annotated[Path, typer.Argument(help="Vanilla folder.")],
    children: Annotated[list[Path], typer.Argument(help="DiJiang folders.")],
    data: DataOption,
    context: Annotated[
        int | None,
        typer.Option(min=33, help="Tokens compared. Default: the parent's positions, up to 2048."),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of the text.")] = 65_536,
    plot: Annotated[Path | None, typer.Option(help="Write a picture, .png or .svg.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Compare converted models with their parent: loss by position, and recall by distance.

    What a model was trained for shows in its first tokens; whether it can be served longer than
    that, and what its state has forgotten, shows in the later ones.

    Example:

        dijiang compare pythia-70m pythia-70m-dijiang --data heldout.txt --plot compare.png
    """
    from dijiang_runtime.conversion.compare import CompareOptions
    from dijiang_runtime.conversion.compare import compare as run_comparison

    if plot is not None and plot.suffix not in (".png", ".svg"):
        fail("the picture's name must end in .png or .svg.", exit_code=2)
    options = CompareOptions(context=context, max_tokens=max_tokens)
    with progress_bar("Comparing") as advance:
        measured = run_comparison(
            [parent, *children], data, options, lambda name, done, total: advance(done, total)
        )
    if plot is not None:
        from dijiang_runtime.conversion.compare_plot import plot_comparison

        plot_comparison(measured, plot)
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(model) for model in measured], indent=2))
        return
    from rich.console import Console

    console = Console()
    for table in comparison_tables(measured):
        console.print(table)


def comparison_tables(measured: Sequence["Measured"]) -> "Iterator[Table]":
    """Loss by position, each child's with its distance from the parent's; recall by distance."""
    from rich.table import Table

    first = measured[0].evaluation
    loss = Table("tokens seen", title=f"Loss on {first.num_tokens:,} tokens")
    recall = Table("distance", title="Recall: nats gained by having read it, tokens that are right")
    for model in measured:
        loss.add_column(model.name, justify="right")
        recall.add_column(model.name, justify="right")
    for index, bucket in enumerate(first.by_position):
        losses = [model.evaluation.by_position[index].loss for model in measured]
        loss.add_row(f"{bucket.start + 1}..{bucket.stop}", *_beside_the_first(losses))
    loss.add_section()
    loss.add_row("all", *_beside_the_first([model.evaluation.loss for model in measured]))
    for index, found in enumerate(measured[0].recall):
        of_models = (model.recall[index] for model in measured)
        cells = (f"{r.gain:.3f}  {100 * r.accuracy:.1f} %" for r in of_models)
        recall.add_row(f"{found.distance:,}", *cells)
    yield loss
    if measured[0].recall:
        yield recall


def _beside_the_first(losses: Sequence[float]) -> Iterator[str]:
    yield f"{losses[0]:.4f}"
    for loss in losses[1:]:
        yield f"{loss:.4f}  {100 * (loss / losses[0] - 1):+.1f} %"
