"""How a model came to be: every command that made it, kept beside the weights and in its card."""

import json
from pathlib import Path
from typing import Any

from dijiang_runtime.conversion.card import model_card
from dijiang_runtime.conversion.vanilla import read_config
from dijiang_runtime.models.config import MODEL_TYPE, ModelConfig

PROVENANCE_FILE = "provenance.json"
CARD_FILE = "README.md"


def read_provenance(folder: Path) -> list[dict[str, Any]]:
    """The steps that made this folder, oldest first; empty for a model from elsewhere."""
    try:
        steps = json.loads((folder / PROVENANCE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return steps if isinstance(steps, list) else []


def add_step(source: Path, out: Path, step: dict[str, Any], *, name: str | None = None) -> None:
    """Write to `out` the provenance of `source` and one more step, and a card that shows them.

    Args:
        name: Of the model. Default: the folder's.
    """
    steps = [*read_provenance(source), step]
    text = json.dumps(steps, indent=2) + "\n"
    (out / PROVENANCE_FILE).write_text(text, encoding="utf-8")
    card = model_card(name or out.resolve().name, steps, _dijiang_config(out))
    (out / CARD_FILE).write_text(card, encoding="utf-8")


def _dijiang_config(folder: Path) -> ModelConfig | None:
    values = read_config(folder)
    return ModelConfig.from_dict(values) if values.get("model_type") == MODEL_TYPE else None
