"""`dijiang bench --ratios`: the engine beside the machine's ceilings and other engines."""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from dijiang_runtime.models.serving import ServingModel

CONTEXT_SLACK = 256

DECODE_SHARES = {
    "of memory": "bandwidth_share",
    "of cache": "cached_bandwidth_share",
    "of roofline": "roofline_share",
    "bound by": "bound_by",
}
"""Columns of a table, and what of a result is in them."""
PREFILL_SHARES = {"of matrix peak": "matrix_share", "projections alone": "projection_share"}


def bench_ratios(
    console: "Console",
    shape: str,
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
    from dijiang_runtime.bench.facts import shape_config
    from dijiang_runtime.bench.ratios import RatioBench, RatioOptions, measure_ceilings
    from dijiang_runtime.models.packed import weight_bytes, weight_format_of
    from dijiang_runtime.models.serving import decoder_of
    from server.commands.bench import load

    threads = torch.get_num_threads()
    model: ServingModel = load(None, shape, dtype, device)
    torch.set_num_threads(threads)
    decoder = decoder_of(model)
    ceilings = measure_ceilings(weight_format_of(decoder), weight_bytes(decoder), device)
    if device.type == "cpu":
        torch.set_num_threads(1)  # As the engine leaves it: the kernels have threads of their own.
    config = shape_config(shape)
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
        bench = RatioBench(model, options, lambda text: status.update(f"Measuring {text}"))
        result = bench.run(ceilings, others)
    result["model"]["name"] = f"{shape}, random weights"
    result["machine"]["threads"] = threads
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print_ratios(console, result)
    if plot is not None:
        plots.plot(plots.ratio_panels(result), plots.caption(result), plot)


def print_ratios(console: "Console", result: dict[str, Any]) -> None:
    """The tables: medians, and what share of a ceiling or how many times a peer they are."""
    from rich.table import Table

    machine, ceilings = result["machine"], result["ceilings"]
    console.print(
        f"{result['model']['name']}, {result['model']['dtype']}; "
        f"{machine['gpu'] or str(machine['threads']) + ' threads'}, commit {machine['commit']}\n"
        f"memory {ceilings['memory_bytes_per_second'] / 1e9:.1f} GB/s, an array as large as the "
        f"weights {ceilings['cached_bytes_per_second'] / 1e9:.1f} GB/s, matrix "
        f"{ceilings['matrix_operations_per_second'] / 1e9:,.0f} Gop/s",
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
