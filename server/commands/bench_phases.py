"""`dijiang bench --phases`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from server.commands.common import fail

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status

    from dijiang_runtime.models.serving import ServingModel


def bench_phases(
    console: "Console",
    status: "Status",
    model: "ServingModel",
    rounds: int,
    json_file: Path | None,
) -> None:
    """Print where the time of decodes and of a prompt goes."""
    from rich.table import Table

    from dijiang_runtime.bench.facts import describe_machine, describe_model
    from dijiang_runtime.bench.phases import PARTS, PhaseOptions, measure_phases
    from dijiang_runtime.models.compiled import CompiledDecoder
    from dijiang_runtime.models.serving import decoder_of

    if not isinstance(model, CompiledDecoder):
        fail("--phases takes steps of the compiled CPU kernels apart: this model has none.")
    options = PhaseOptions(rounds=rounds)
    found = measure_phases(model, options, lambda text: status.update(f"Measuring {text}"))
    machine = describe_machine() | {"threads": model.context.num_threads}
    facts = {"machine": machine, "model": describe_model(decoder_of(model))}
    if json_file is not None:
        json_file.write_text(json.dumps({**facts, "phases": found}, indent=2) + "\n", "utf-8")
    status.stop()
    table = Table("us of", title="Where a step goes")
    for row in found:
        table.add_column(_title(row), justify="right")
    for name in PARTS:
        table.add_row(name, *(f"{1e6 * row['parts'][name]:,.0f}" for row in found))
    table.add_section()
    table.add_row("whole", *(f"{1e6 * row['seconds']:,.0f}" for row in found))
    console.print(
        f"{machine['cpu']}, {model.context.target}, {machine['threads']} threads of "
        f"{machine['cores']} cores, commit {machine['commit']}",
        soft_wrap=True,
    )
    console.print(table)


def _title(row: dict[str, Any]) -> str:
    return f"decode of {row['batch']}" if "batch" in row else f"prompt of {row['length']:,}"
