"""`dijiang bench --ratios`: the engine beside the machine's ceilings and other engines."""

import json
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from server.commands.common import PresetName

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status

    from dijiang_runtime.models.serving import ServingModel

CONTEXT_SLACK = 256

DECODE_SHARES = {
    "of memory": "bandwidth_share",
    "of cache": "cached_bandwidth_share",
    "of roofline": "roofline_share",
    "bound by": "bound_by",
}
"""Columns of a table, and what of a result is in them."""
PREFILL_SHARES = {"of matrix peak": "matrix_share", "its projections": "projection_share"}


def bench_ratios(
    console: "Console",
    shape: str,
    preset: PresetName,
    dtype: Any,
    device: Any,
    points: tuple[tuple[int, int], ...],
    prefills: tuple[int, ...],
    rounds: int,
    llama_python: Path | None,
    transformers_dtypes: tuple[str, ...],
    json_file: Path | None,
    plot: Path | None = None,
) -> None:
    """Measure, print, and write what was measured."""
    import torch

    from dijiang_runtime.bench import peers, plots
    from dijiang_runtime.bench.ceilings import CeilingMeter
    from dijiang_runtime.bench.facts import shape_config
    from dijiang_runtime.bench.ratios import RatioBench, RatioOptions
    from dijiang_runtime.models.packed import weight_bytes, weight_format_of
    from dijiang_runtime.models.serving import decoder_of
    from server.commands.bench import load, shape_name

    threads = torch.get_num_threads()
    model: ServingModel = load(None, shape, preset, dtype, device)
    decoder = decoder_of(model)
    measure = CeilingMeter(
        weight_format_of(decoder), weight_bytes(decoder), threads=threads, device=device
    )
    config = shape_config(shape, preset.value)
    furthest = max([position for _, position in points] + list(prefills)) + CONTEXT_SLACK
    options = RatioOptions(decodes=points, prefills=prefills, rounds=rounds)
    with ExitStack() as stack, console.status("Starting peers") as status:
        others = []
        if llama_python is not None:
            peer = peers.llama_cpp(llama_python, config, threads, furthest)
            others.append(stack.enter_context(peer))
        for peer_dtype in transformers_dtypes:
            peer = peers.transformers(config, threads, furthest, peer_dtype, device.type)
            others.append(stack.enter_context(peer))
        bench = RatioBench(model, options, measure, partial(_show, status))
        result = bench.run(others)
    result["model"]["name"] = shape_name(shape, preset)
    result["machine"]["threads"] = threads
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print_ratios(console, result)
    if plot is not None:
        plots.plot(plots.ratio_panels(result), plots.caption(result), plot)


def _show(status: "Status", text: str) -> None:
    status.update(f"Measuring {text}")


def _span(result: dict[str, Any], ceiling: str) -> str:
    """What a ceiling was beside all rows, in 1e9."""
    found = [row["ceilings"][ceiling] / 1e9 for row in (*result["decode"], *result["prefill"])]
    return " to ".join(dict.fromkeys(f"{value:,.0f}" for value in (min(found), max(found))))


def print_ratios(console: "Console", result: dict[str, Any]) -> None:
    """The tables: medians, and what share of a ceiling or how many times a peer they are."""
    from rich.table import Table

    machine = result["machine"]
    console.print(
        f"{result['model']['name']}, {result['model']['dtype']}; "
        f"{machine['gpu'] or str(machine['threads']) + ' threads'}, "
        f"commit {machine['commit']}\n{_span(result, 'memory')} GB/s from memory, "
        f"{_span(result, 'cached')} GB/s of an array as large as the weights, "
        f"{_span(result, 'matrix')} Gop/s",
        soft_wrap=True,
    )
    for kind, keys, shares in (
        ("decode", ("batch", "position"), DECODE_SHARES),
        ("prefill", ("length",), PREFILL_SHARES),
    ):
        rows = result[kind]
        if not rows:
            continue
        table = Table(*keys, "tokens/s", "ms", *shares, title=kind.capitalize())
        for row in rows:
            seconds = row["seconds"]["engine"]["median"]
            tokens = row.get("batch", row.get("length"))
            found = [row[share] for share in shares.values()]
            cells = (share if isinstance(share, str) else f"{share:.2f}" for share in found)
            table.add_row(
                *(f"{row[key]:,}" for key in keys),
                f"{tokens / seconds:,.0f}",
                f"{1e3 * seconds:.3f}",
                *cells,
            )
        console.print(table)
        if not (others := list(rows[0]["speed_ups"])):
            continue
        beside = Table(*keys, *others, title=f"{kind.capitalize()}: how much longer peers take")
        for row in rows:
            speed_ups = (f"{row['speed_ups'][o]:.2f}x" for o in others)
            beside.add_row(*(f"{row[key]:,}" for key in keys), *speed_ups)
        console.print(beside)
