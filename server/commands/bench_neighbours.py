"""`dijiang bench --neighbours`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from dijiang_runtime.models.serving import ServingModel

BATCH = 32


def bench_neighbours(
    console: "Console",
    model: "ServingModel",
    folder: Path | None,
    rounds: int,
    json_file: Path | None,
) -> None:
    """Print what rows that want more than the likeliest token cost those beside them."""
    from rich.table import Table

    from dijiang_runtime.bench.facts import describe_machine, describe_model
    from dijiang_runtime.bench.made_up import made_up_tokenizer
    from dijiang_runtime.bench.neighbours import NeighboursBench
    from dijiang_runtime.models.serving import decoder_of
    from dijiang_runtime.tokenizer import Tokenizer

    vocab_size = model.config.vocab_size
    tokenizer = Tokenizer.load(folder) if folder else Tokenizer(made_up_tokenizer(vocab_size))
    steps = NeighboursBench(model, tokenizer, BATCH).run(rounds)
    facts = {"machine": describe_machine(), "model": describe_model(decoder_of(model))}
    if json_file is not None:
        result = {**facts, "batch": BATCH, "steps": steps}
        json_file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    title = f"Beside plain rows, {BATCH} in all, {steps[0]['num_pairs']} pairs"
    table = Table("rows", f"of {BATCH}", "plain, ms", "ms", "longer by", title=title)
    table.add_column("quartiles")
    for column in table.columns[1:]:
        column.justify = "right"
    for step in steps:
        cost = step["cost"]
        table.add_row(
            step["kind"],
            str(step["rows"]),
            f"{1e3 * step['plain_seconds']:.3f}",
            f"{1e3 * step['seconds']:.3f}",
            f"{cost['median']:+.1%}",
            f"{cost['lower_quartile']:+.1%} to {cost['upper_quartile']:+.1%}",
        )
    machine = facts["machine"]
    console.print(
        f"{machine['cpu']}, {machine['threads']} threads of {machine['cores']} cores, "
        f"commit {machine['commit']}",
        soft_wrap=True,
    )
    console.print(table)
