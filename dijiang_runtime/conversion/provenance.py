"""How a model came to be: every command that made it, kept beside the weights and in its card."""

import json
from pathlib import Path
from typing import Any

PROVENANCE_FILE = "provenance.json"
CARD_FILE = "README.md"


def read_provenance(folder: Path) -> list[dict[str, Any]]:
    """The steps that made this folder, oldest first; empty for a model from elsewhere."""
    try:
        steps = json.loads((folder / PROVENANCE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return steps if isinstance(steps, list) else []


def add_step(source: Path, out: Path, step: dict[str, Any]) -> None:
    """Write to `out` the provenance of `source` and one more step, and a card that shows them."""
    steps = [*read_provenance(source), step]
    text = json.dumps(steps, indent=2) + "\n"
    (out / PROVENANCE_FILE).write_text(text, encoding="utf-8")
    (out / CARD_FILE).write_text(model_card(out.resolve().name, steps), encoding="utf-8")


def model_card(name: str, steps: list[dict[str, Any]]) -> str:
    """The `README.md` of a model folder, in Markdown."""
    is_dijiang = any(step["command"] == "convert" for step in steps)
    kind = (
        "A DiJiang model: a Transformer whose softmax attention was replaced by linear attention "
        "with one recurrent state of constant size per sequence."
        if is_dijiang
        else "A vanilla Transformer with softmax attention."
    )
    use = (
        f'```bash\ndijiang serve {name}\ndijiang generate {name} --prompt "Once upon a time"\n```'
        if is_dijiang
        else f"```bash\ndijiang convert {name} OUT\n```"
    )
    return (
        f"---\nlibrary_name: dijiang\n---\n\n# {name}\n\n{kind}\n\n## How it was made\n\n"
        f"{_table(steps)}\n\n## Use\n\n{use}\n\n## Licence\n\n"
        "Weights that were copied from a parent keep the parent's licence.\n"
    )


def _table(steps: list[dict[str, Any]]) -> str:
    rows = [f"| {step['command']} | {_facts(step)} |" for step in steps]
    return "\n".join(["| step | facts |", "|---|---|", *rows])


def _facts(step: dict[str, Any]) -> str:
    facts = []
    for key, value in step.items():
        if key == "command" or value is None:
            continue
        if isinstance(value, float):
            value = f"{value:.4g}"
        elif isinstance(value, list):
            value = ", ".join(str(item) for item in value)
        facts.append(f"{key.replace('_', ' ')}: {value}")
    return "; ".join(facts)
