"""`dijiang kernel-error`."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from server.commands.progress import progress_bar

if TYPE_CHECKING:
    from dijiang_runtime.kernelization.error import KernelError, QueriesAndKeys


def kernel_error(
    parent: Annotated[
        str | None, typer.Argument(help="Vanilla folder or hub id, for its own queries and keys.")
    ] = None,
    data: Annotated[
        list[Path] | None, typer.Option(help="Text that the parent reads. Repeatable.")
    ] = None,
    features: Annotated[
        list[int] | None, typer.Option(min=1, help="Features to compare. Repeatable.")
    ] = None,
    head_dim: Annotated[int, typer.Option(min=1, help="Of the synthetic queries and keys.")] = 64,
    logit_std: Annotated[
        list[float] | None, typer.Option(help="Spread of synthetic attention logits. Repeatable.")
    ] = None,
    tokens: Annotated[int, typer.Option(min=2, help="Length of the text.")] = 128,
    heads: Annotated[int, typer.Option(min=1, help="Heads of the parent, over its layers.")] = 8,
    seeds: Annotated[int, typer.Option(min=1, help="Draws to average.")] = 5,
    plot: Annotated[Path | None, typer.Option(help="Write a picture, .png or .svg.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Measure how far attention with m features is from softmax attention, before any training.

    Compares Monte Carlo, quasi-Monte Carlo, weighted quasi-Monte Carlo and the DCT, as the paper
    defines them, on Gaussian queries and keys and, where named, on a parent's own.

    Example:

        dijiang kernel-error pythia-70m --data text.txt --plot kernel-error.png
    """
    from dijiang_runtime.kernelization.error import kernel_errors, synthetic, uniform_error

    if (parent is None) != (not data):
        raise typer.BadParameter("a parent needs --data, and --data needs a parent.")
    if plot is not None and plot.suffix not in (".png", ".svg"):
        raise typer.BadParameter("the picture's name must end in .png or .svg.")
    counts = sorted(set(features or (16, 32, 64, 128, 256)))
    sets = [synthetic(tokens, head_dim, std, seed=0) for std in logit_std or (0.5, 1.0)]
    if parent is not None:
        sets.append(_of_parent(parent, data or [], tokens, heads))
    errors: list[KernelError] = []
    with progress_bar("Comparing") as advance:
        for queries_and_keys in sets:
            for error in kernel_errors(queries_and_keys, counts, num_seeds=seeds):
                errors.append(error)
                advance(len(errors), 5 * len(counts) * len(sets))
    uniform = {one.source: uniform_error(one) for one in sets}
    if plot is not None:
        from dijiang_runtime.conversion.kernel_plot import plot_kernel_errors

        plot_kernel_errors(errors, uniform, plot)
    if as_json:
        figures = [dataclasses.asdict(error) for error in errors]
        typer.echo(json.dumps({"errors": figures, "uniform": uniform}, indent=2))
    else:
        _print_tables(errors, uniform, counts)


def _of_parent(parent: str, data: Sequence[Path], tokens: int, heads: int) -> "QueriesAndKeys":
    from dijiang_runtime.conversion.parents import find_parent
    from dijiang_runtime.conversion.queries_keys import parent_queries_and_keys

    folder = find_parent(parent).folder
    return parent_queries_and_keys(folder, data, num_tokens=tokens, num_heads=heads)


def _print_tables(
    errors: Sequence["KernelError"], uniform: Mapping[str, float], counts: Sequence[int]
) -> None:
    from rich.console import Console
    from rich.table import Table

    from dijiang_runtime.conversion.kernel_plot import LABELS

    console = Console()
    for source, baseline in uniform.items():
        table = Table("rule", *(f"m = {count}" for count in counts), title=source)
        for rule, label in LABELS.items():
            row = [e for e in errors if e.source == source and e.rule == rule]
            table.add_row(label, *(f"{e.mean:.3f} ± {e.std:.3f}" for e in row))
        table.add_row("uniform attention", *(f"{baseline:.3f}" for _ in counts))
        console.print(table)
