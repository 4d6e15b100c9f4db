"""What the operator reads on standard error when the server starts."""

import json

from rich.console import Console
from rich.table import Table

from dijiang_runtime.engine.messages import EngineInfo
from server.config import MAX_HEADER_BYTES, ServerConfig


def print_summary(console: Console, url: str, info: EngineInfo, config: ServerConfig) -> None:
    """Say where the server is, what it serves, and what it will bear."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold cyan", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("Ready", f"[bold]{url}/v1[/bold]")
    if config.playground:
        table.add_row("Playground", f"{url}/")
    table.add_row(
        "Model",
        f"{', '.join(config.model_names)}: {info.family}, "
        f"{quantity(info.num_parameters)} parameters, "
        f"{info.dtype} on {info.device}, threads: {info.num_threads}",
    )
    table.add_row(
        "Slots",
        f"{info.num_slots} sequences at once, {size(info.state_bytes_per_sequence)} each however "
        f"long: {size(info.state_bytes_total)}",
    )
    if config.api_workers > 1:
        table.add_row("Workers", f"{config.api_workers} processes answer the API")
    table.add_row("Limits", limits(info, config))
    table.add_row("Times", times(config))
    table.add_row("Keys", "required" if config.api_key_hashes else "none: anyone here may ask")
    table.add_row("Loaded", f"in {info.load_seconds:.1f} s, warm in {info.warmup_seconds:.1f} s")
    console.print()
    console.print(table)
    console.print()
    # Not wrapped and not marked up: it is there to be copied.
    console.print(
        _curl(url, bool(config.api_key_hashes)), markup=False, highlight=False, soft_wrap=True
    )
    console.print()


def limits(info: EngineInfo, config: ServerConfig) -> str:
    """Everything that bounds what a client may ask for, and how much of it."""
    per_key = config.max_requests_per_key
    return (
        f"{info.max_model_len:,} tokens a sequence; {info.max_queued_requests} requests and "
        f"{info.max_queued_tokens:,} tokens waiting; {config.max_choices} choices, "
        f"{config.max_sequences_per_request} sequences, {config.max_messages} messages and "
        f"{info.max_logprobs} logprobs a request; "
        f"{per_key or 'any number of'} requests {'a key' if per_key else 'of one key'}; "
        f"{size(config.max_body_bytes)} a body, {size(MAX_HEADER_BYTES)} of headers"
    )


def times(config: ServerConfig) -> str:
    """How long anything may take."""
    named = {
        "headers": config.header_timeout_seconds,
        "body": config.body_timeout_seconds,
        "a slot": config.max_queue_seconds,
        "an answer": config.max_request_seconds,
        "a client that does not read": config.send_timeout_seconds,
        "an idle connection": config.keep_alive_timeout_seconds,
        "draining": config.drain_seconds,
    }
    return ", ".join(f"{name} {f'{s:g} s' if s else 'no limit'}" for name, s in named.items())


def quantity(number: int) -> str:
    """A count with three digits: 2.83 M."""
    for factor, unit in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if number >= factor:
            return f"{number / factor:.3g} {unit}"
    return str(number)


def size(num_bytes: int) -> str:
    """A size with its unit: 2 MiB."""
    for factor, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if num_bytes >= factor:
            return f"{num_bytes / factor:.4g} {unit}"
    return f"{num_bytes} B"


def _curl(url: str, needs_key: bool) -> str:
    body = json.dumps({"prompt": "Once upon a time", "max_tokens": 200, "stream": True})
    key = ' -H "Authorization: Bearer $KEY"' if needs_key else ""
    return f"curl -N {url}/v1/completions -H 'Content-Type: application/json'{key} -d '{body}'"
