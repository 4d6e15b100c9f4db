"""`dijiang bench --training`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def bench_training(console: "Console", threads: int | None, rounds: int, file: Path | None) -> None:
    """Measure the training operator against the quadratic form, print and write what was found."""
    from rich.console import Console as ErrorConsole

    with ErrorConsole(stderr=True).status("Loading torch") as status:
        import torch

        from dijiang_runtime.bench.training import TrainingBenchOptions, run
        from dijiang_runtime.engine.resources import available_cpus

        torch.set_num_threads(threads or available_cpus())
        options = TrainingBenchOptions(rounds=rounds)
        result = run(options, lambda text: status.update(f"Measuring {text}"))
    if file is not None:
        file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    machine = result["machine"]
    console.print(
        f"Forward and backward of one attention layer: batch {options.batch}, {options.heads} head "
        f"of {options.head_dim} dimensions, {2 * options.head_dim} features, float32\n"
        f"{machine['cpu']}, {machine['threads']} threads of {machine['cores']} cores, load "
        f"{machine['load_average']:.1f}, torch {machine['torch']}, commit {machine['commit']}",
        soft_wrap=True,
    )
    console.print(training_table(result["training_by_length"]))


def training_table(rows: list[dict[str, Any]]) -> "Table":
    """Medians of both forms, how many times as fast the chunkwise one is, and their peaks."""
    from rich.table import Table

    table = Table("length", title="Training by length")
    for name in ("chunkwise\ntokens/s", "parallel\ntokens/s", "ratio"):
        table.add_column(name)
    for name in ("chunkwise\nMiB", "parallel\nMiB", "rounds", "disturbed"):
        table.add_column(name)
    for column in table.columns:
        column.justify = "right"
    for row in rows:
        seconds = row["chunkwise"]["seconds"]
        table.add_row(
            f"{row['length']:,}",
            _speed(row, "chunkwise"),
            _speed(row, "parallel"),
            "" if row["ratio"] is None else f"{row['ratio']:.2f}",
            _peak(row, "chunkwise"),
            _peak(row, "parallel"),
            str(seconds["num_rounds"]),
            str(seconds["num_disturbed"]),
        )
    return table


def _speed(row: dict[str, Any], form: str) -> str:
    return f"{row[form]['tokens_per_second']:,.0f}" if form in row else "does not fit"


def _peak(row: dict[str, Any], form: str) -> str:
    peak = row[form]["peak_bytes"] if form in row else None
    return "" if peak is None else f"{peak / 2**20:,.1f}"
