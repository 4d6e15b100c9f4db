"""`dijiang inspect`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.commands.common import ModelArgument, model_folder

if TYPE_CHECKING:
    from rich.table import Table

    from dijiang_runtime.models.config import ModelConfig

LENGTHS = (1_000, 4_000, 16_000, 64_000, 256_000, 1_000_000)


def inspect(
    model: ModelArgument = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what a model costs: parameters, state per sequence, slots that fit, and the KV cache
    that a Transformer of the same shape would need.

    Examples:

        dijiang inspect

        dijiang inspect ./pythia-410m-dijiang --json
    """
    facts = gather(model_folder(model))
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    from rich.console import Console

    console = Console(highlight=False)
    console.print(facts_table(facts))
    console.print(memory_table(facts))
    even = facts["break_even_tokens"]
    console.print(f"The state is the smaller one for sequences beyond {even:,} tokens.")


def gather(folder: Path) -> dict[str, Any]:
    """Everything that the command shows, as plain numbers."""
    from dijiang_runtime.config import EngineConfig
    from dijiang_runtime.engine.loading import count_slots
    from dijiang_runtime.engine.state_pool import StatePool
    from dijiang_runtime.models.loader import load_config
    from dijiang_runtime.models.packed_folder import packed_format
    from dijiang_runtime.models.serving import num_pending_tokens

    config = load_config(folder)
    kv_bytes_per_token = config.parent_kv_cache_bytes_per_token
    state = config.state
    num_pending = num_pending_tokens(config)
    return {
        "model": folder.name,
        "family": config.family,
        "preset": config.preset,
        "num_layers": config.num_layers,
        "hidden_size": config.hidden_size,
        "num_heads": config.num_heads,
        "num_kv_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "position_limit": config.position_limit,
        "num_parameters": count_parameters(config),
        "packed": packed_format(folder),
        "weights_bytes": sum(path.stat().st_size for path in folder.glob("*.safetensors")),
        "state_shape": [state.num_layers, state.num_heads, state.key_dim, state.value_dim],
        "window": config.attention.window,
        "sinks": config.attention.sinks,
        "state_bytes": state.num_bytes,
        # A step writes beside the state that it reads, so a slot holds two.
        "slot_bytes": StatePool.bytes_per_slot(state, num_pending),
        "num_slots": count_slots(
            EngineConfig(model=folder), config, num_pending_tokens=num_pending
        ),
        "kv_cache_bytes_per_token": kv_bytes_per_token,
        "kv_cache_bytes": {length: length * kv_bytes_per_token for length in LENGTHS},
        "break_even_tokens": -(-state.num_bytes // kv_bytes_per_token),
    }


def count_parameters(config: "ModelConfig") -> int:
    """Parameters of a model of this shape, without their memory."""
    import torch

    from dijiang_runtime.models.decoder import Decoder

    with torch.device("meta"):
        return sum(parameter.numel() for parameter in Decoder(config).parameters())


def facts_table(facts: dict[str, Any]) -> "Table":
    from rich.table import Table

    from server.summary import quantity, size

    table = Table(show_header=False, box=None)
    layers, heads, key_dim, value_dim = facts["state_shape"]
    shape = f"{facts['num_layers']} layers of {facts['num_heads']} heads x {facts['head_dim']}"
    limit = facts["position_limit"]
    state = f"{size(facts['state_bytes'])}: {layers} x {heads} x {key_dim} x {value_dim}"
    if facts["window"]:
        state += f", and keys and values of the last {facts['window']} tokens"
        state += f" and the first {facts['sinks']}" if facts["sinks"] else ""
    packed = f", packed as {facts['packed']}" if facts["packed"] else ""
    for name, value in (
        ("Model", f"{facts['model']}, {facts['family']}: {shape}, hidden {facts['hidden_size']}"),
        (
            "Parameters",
            f"{quantity(facts['num_parameters'])}, {size(facts['weights_bytes'])} on disk{packed}",
        ),
        ("Vocabulary", f"{facts['vocab_size']:,} tokens"),
        ("Positions", "no limit" if limit is None else f"{limit:,}, a hard limit"),
        ("State", state),
        ("Slots", f"{facts['num_slots']} fit here now, {size(facts['slot_bytes'])} each"),
    ):
        table.add_row(f"[bold]{name}[/bold]", value)
    return table


def memory_table(facts: dict[str, Any]) -> "Table":
    """The state beside the KV cache that the parent would need, by length of the sequence."""
    from rich.table import Table

    from server.summary import size

    table = Table("tokens", "state", "KV cache", "ratio", title="Memory of one sequence")
    for column in table.columns:
        column.justify = "right"
    for length, kv_bytes in facts["kv_cache_bytes"].items():
        ratio = kv_bytes / facts["state_bytes"]
        row = f"{length:,}", size(facts["state_bytes"]), size(kv_bytes), f"{ratio:,.1f}"
        table.add_row(*row)
    table.caption = "State in float32, KV cache in float16."
    return table
