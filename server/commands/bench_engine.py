"""`dijiang bench`: the engine alone, by batch, position and length."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status
    from rich.table import Table

    from dijiang_runtime.models.serving import ServingModel


def measure_engine(
    status: "Status", model: "ServingModel", name: str, rounds: int, *, full: bool
) -> dict[str, Any]:
    """Measure a model that the results call `name`. `full` really runs the longest prompt."""
    from dijiang_runtime.bench.engine import Bench, BenchOptions

    options = BenchOptions(rounds=rounds, full=full)
    result = Bench(model, options, lambda text: status.update(f"Measuring {text}")).run()
    result["model"]["name"] = name
    return result


def report_engine(
    console: "Console", result: dict[str, Any], json_file: Path | None, plot: Path | None
) -> None:
    """Write the result to the files that are given, and print it."""
    from dijiang_runtime.bench import plots

    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    _print_result(console, result)
    if plot is not None:
        plots.plot(plots.engine_panels(result), plots.caption(result), plot)


def _print_result(console: "Console", result: dict[str, Any]) -> None:
    machine, facts = result["machine"], result["model"]
    console.print(
        f"{facts['name']}: {facts['family']}, {facts['num_layers']} layers, hidden "
        f"{facts['hidden_size']}, {facts['num_parameters']:,} parameters, {facts['dtype']}\n"
        f"{machine['gpu'] or machine['cpu']}, {machine['threads']} threads of "
        f"{machine['cores']} cores, load {machine['load_average']:.1f}, "
        f"torch {machine['torch']}, commit {machine['commit']}",
        soft_wrap=True,
    )
    console.print(_figures("Decode by batch", "batch", result["decode_by_batch"]))
    if by_position := result["decode_by_position"]:
        console.print(_figures("Decode by position", "position", by_position["rows"]))
        how = "its prompt was run" if by_position["prompt_was_run"] else "its prompt was not run"
        console.print(
            f"Position 100,000 / 100: {by_position['ratio']:.3f} ({how}); "
            f"{by_position['state_bytes']:,} bytes of state at either.",
            soft_wrap=True,
        )
        if by_position["prompt_was_run"]:
            speed = by_position["prefill_tokens_per_second"]
            console.print(f"Prompt of 100,000 tokens: {speed:,.0f} tokens/s.")
    else:
        console.print("This model has no position 100,000.")
    console.print(_figures("Prefill by length", "length", result["prefill_by_length"]))
    copy = result["state_copy"]
    console.print(
        f"A state of {copy['bytes']:,} bytes: copied in {_us(copy['copy_seconds'])} us "
        f"({copy['copied_bytes_per_second'] / 1e9:.1f} GB/s), emptied in "
        f"{_us(copy['empty_seconds'])}.",
        soft_wrap=True,
    )


def _us(seconds: dict[str, float]) -> str:
    return f"{1e6 * seconds['median']:,.0f}"


def _figures(title: str, key: str, rows: list[dict[str, Any]]) -> "Table":
    """One table: medians, and quartiles as the spread."""
    from rich.table import Table

    table = Table(key, "tokens/s", "ms", "quartiles, ms", "rounds", "disturbed", title=title)
    for column in table.columns:
        column.justify = "right"
    for row in rows:
        seconds = row["seconds"]
        table.add_row(
            f"{row[key]:,}",
            f"{row['tokens_per_second']:,.1f}",
            f"{1e3 * seconds['median']:.2f}",
            f"{1e3 * seconds['lower_quartile']:.2f} - {1e3 * seconds['upper_quartile']:.2f}",
            str(seconds["num_rounds"]),
            str(seconds["num_disturbed"]),
        )
    return table
