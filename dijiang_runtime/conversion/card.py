"""The model card: a `README.md` that says what a model is, how it was made and what it is for."""

import statistics
from typing import Any

from dijiang_runtime.models.config import ModelConfig

# Too long for a line of facts; shown in a section of their own.
_OWN_SECTION = ("command", "tensors", "half_lives")

_PRESETS = {
    "dijiang": "a learned feature map for every key/value head with a negated half, a learned "
    "decay, division by the accumulated feature mass, and a gate that starts neutral",
    "dijiang+window": "the parent's softmax attention over the last tokens and the first few, and "
    "the operator of `dijiang` for all others, under one normalizer",
    "official": "the operator of the authors' code: one frozen feature map for each layer, fixed "
    "decays, group norm, and a small random gate",
}


def model_card(name: str, steps: list[dict[str, Any]], config: ModelConfig | None) -> str:
    """The card in Markdown.

    Args:
        name: Of the model's folder.
        steps: The commands that made it, oldest first.
        config: Of a DiJiang model; None for a vanilla one.
    """
    sections = [_front_matter(steps), f"# {name}\n", _what_it_is(config)]
    conversion = next((step for step in steps if step["command"] == "convert"), None)
    if config is not None:
        sections.append(_attention(config, conversion))
        sections.append(_memory(config))
    if conversion is not None and "tensors" in conversion:
        sections.append(_weights(conversion))
    sections.append(f"## How it was made\n\n{_table(steps)}\n")
    sections.append(_use(name, config, steps))
    if config is not None:
        sections.append(_limits(config, steps))
    sections.append(
        "## Licence\n\nWeights that were copied from a parent keep the parent's licence.\n"
    )
    return "\n".join(sections)


def _front_matter(steps: list[dict[str, Any]]) -> str:
    hub = [step["hub"].split("@")[0] for step in steps if step.get("hub")]
    base = f"base_model: {hub[0]}\n" if hub else ""
    return f"---\nlibrary_name: dijiang\npipeline_tag: text-generation\n{base}---\n"


def _what_it_is(config: ModelConfig | None) -> str:
    if config is None:
        return "A vanilla Transformer with softmax attention.\n"
    return (
        "A DiJiang model: a Transformer whose softmax attention was replaced by linear attention "
        "with one recurrent state of constant size per sequence.\n"
    )


def _attention(config: ModelConfig, conversion: dict[str, Any] | None) -> str:
    preset = _PRESETS.get(config.preset)
    lines = [
        "## Attention\n",
        f"Preset `{config.preset}`{': ' + preset if preset else ''}.",
        f"{config.num_layers} layers, {config.num_heads} query heads that read "
        f"{config.num_kv_heads} states of {config.attention.num_features} features by "
        f"{config.head_dim} values each ({config.family} family).",
    ]
    if config.attention.window:
        lines.append(
            f"Softmax over the last {config.attention.window} tokens and the first "
            f"{config.attention.sinks}, whose keys and values are part of the state."
        )
    if conversion is not None and conversion.get("half_lives"):
        flat = [value for layer in conversion["half_lives"] for value in layer]
        source = "the parent's own look-back" if conversion.get("calibrated_on") else "its options"
        lines.append(
            f"At conversion, from {source}, a head had forgotten half after {min(flat):.3g} to "
            f"{max(flat):.4g} tokens (median {statistics.median(flat):.3g})."
        )
    return "\n".join(lines) + "\n"


def _memory(config: ModelConfig) -> str:
    state, kv = config.state.num_bytes, config.parent_kv_cache_bytes_per_token
    return (
        "## Memory of a sequence\n\n"
        f"The state takes {state:,} bytes, however long the sequence. The parent's keys and values "
        f"take {kv:,} bytes a token in 16 bits: more than that from {-(-state // kv):,} tokens on, "
        f"and {kv * config.max_position_embeddings:,} bytes at the "
        f"{config.max_position_embeddings:,} positions it was trained on.\n"
    )


def _weights(conversion: dict[str, Any]) -> str:
    rows = [
        f"| `{group['name']}` | {' x '.join(map(str, group['shape']))} | {group['count']} | "
        f"{'parent' if group['is_copied'] else 'new'} |"
        for group in conversion["tensors"]
    ]
    table = "\n".join(["| tensor | shape | count | from |", "|---|---|---|---|", *rows])
    return (
        "## Weights at conversion\n\n"
        f"{conversion['copied_parameters']:,} parameters were copied from the parent, "
        f"{conversion['new_parameters']:,} are new.\n\n{table}\n"
    )


def _use(name: str, config: ModelConfig | None, steps: list[dict[str, Any]]) -> str:
    if config is None:
        return f"## Use\n\n```bash\ndijiang convert {name} OUT\n```\n"
    serve = f"dijiang serve {name}\ndijiang generate {name} --prompt 'Once upon a time'"
    if any(step["command"] == "quantize" for step in steps):
        return (
            f"## Use\n\n```bash\n{serve}\n```\n\nIts matrices are packed for the CPU: training and "
            "everything but serving needs the folder that it was made from.\n"
        )
    train = (
        f"dijiang train {name} --teacher PARENT --data text.txt --align-fraction 0.25 --out TRAINED"
    )
    return (
        f"## Use\n\n```bash\n{serve}\n```\n\nTo teach it, further or at all:\n\n"
        f"```bash\n{train}\n```\n"
    )


def _limits(config: ModelConfig, steps: list[dict[str, Any]]) -> str:
    lines = ["## Limits\n"]
    if not any(step["command"] == "train" for step in steps):
        lines.append(
            "- It has not been trained: its attention is not yet the parent's, and what it writes "
            "is nonsense."
        )
    if config.position_limit is not None:
        lines.append(f"- Sequences end at {config.position_limit:,} positions.")
    else:
        lines.append(
            f"- Sequences may be longer than the {config.max_position_embeddings:,} positions of "
            "its parent, but nothing there was trained."
        )
    lines.append(
        "- A state of constant size cannot hold every detail of a long text: expect worse verbatim "
        "recall of far-away text than with softmax attention."
    )
    return "\n".join(lines) + "\n"


def _table(steps: list[dict[str, Any]]) -> str:
    rows = [f"| {step['command']} | {_facts(step)} |" for step in steps]
    return "\n".join(["| step | facts |", "|---|---|", *rows])


def _facts(step: dict[str, Any]) -> str:
    facts = []
    for key, value in step.items():
        if key in _OWN_SECTION or value is None:
            continue
        if isinstance(value, float):
            value = f"{value:.4g}"
        elif isinstance(value, list):
            value = ", ".join(str(item) for item in value)
        facts.append(f"{key.replace('_', ' ')}: {value}")
    return "; ".join(facts)
