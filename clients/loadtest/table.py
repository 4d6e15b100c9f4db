"""A report as tables for a terminal."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from clients.loadtest.report import all_runs, server_name
from clients.loadtest.statistics import PERCENTILES

METRIC_NAMES = {"ttft": "TTFT", "itl": "ITL", "tpot": "TPOT", "e2e": "E2E"}


def print_report(report: Mapping[str, Any], console: Console) -> None:
    """Print every run, and a summary where there are several."""
    console.print(Text(describe(report)))
    for server, run in all_runs(report):
        console.print(Text(f"\n{server_name(server)}, {run['load']['label']}", style="bold"))
        console.print(Group(*run_parts(run)))
    for server in report["servers"]:
        if len(server["runs"]) > 1:
            console.print(Text(f"\n{server_name(server)}, latencies in ms", style="bold"))
            console.print(sweep_table(server))
    if report["is_interrupted"]:
        console.print(Text("The load test was stopped early.", style="yellow"))


def describe(report: Mapping[str, Any]) -> str:
    """What was sent, in two lines."""
    options, scale = report["options"], report["token_scale"]
    length = f"prompts {options['prompt_tokens']}, answers {options['output_tokens']} tokens"
    loop = f"{options['arrivals']} arrivals" if options["arrivals"] else "closed loop"
    parts = [f"{options['endpoint']}, {loop}", length]
    if options["shared_prefix_tokens"]:
        parts.append(
            f"{options['num_prefixes']} shared prefix(es) of {options['shared_prefix_tokens']}"
        )
    if options["turns"] != "1":
        parts.append(f"turns {options['turns']}, {options['think_seconds']:g} s apart")
    how = "measured" if scale["is_measured"] else "assumed: the server reports no usage"
    parts.append(f"seed {options['seed']}")
    machine = report["machine"]
    return (
        f"{'; '.join(parts)}\n"
        f"{scale['tokens_per_word']:.2f} tokens per word ({how}); from {machine['cpu']}, "
        f"{machine['cores']} cores, load {machine['load_average'] or 0:.1f}"
    )


def run_parts(run: Mapping[str, Any]) -> Iterator[RenderableType]:
    yield latency_table(run["latency"])
    for line in run_lines(run):
        yield Text(line)
    for kind, error in run["requests"]["errors"].items():
        yield Text(f"{error['count']} x {kind}: {error['message']}", style="red")
    for warning in run["generator"]["warnings"]:
        yield Text(f"Warning: {warning}", style="yellow")


def latency_table(latency: Mapping[str, Any]) -> Table:
    columns = ["mean", *(f"p{p}" for p in PERCENTILES), "max"]
    table = Table("ms", *columns, box=None, header_style="bold", pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, shown in METRIC_NAMES.items():
        summary = latency[name]
        cells = [milliseconds(summary[c]) if summary else "-" for c in columns]
        table.add_row(shown, *cells)
    return table


def run_lines(run: Mapping[str, Any]) -> Iterator[str]:
    """The other figures of a run, as sentences of a kind."""
    requests, tokens, throughput = run["requests"], run["tokens"], run["throughput"]
    yield (
        f"{requests['completed']:,} of {requests['measured']:,} requests completed, "
        f"{requests['failed']:,} failed ({requests['error_rate']:.1%}); "
        f"{requests['not_measured']:,} not measured (warm-up)"
    )
    yield (
        f"{throughput['output_tokens_per_second']:,.1f} output tokens/s, "
        f"{throughput['prompt_tokens_per_second']:,.1f} prompt tokens/s, "
        f"{throughput['requests_per_second']:,.2f} requests/s; in flight: mean "
        f"{run['concurrency']['mean']:,.1f}, most {run['concurrency']['max']:,}"
    )
    if goodput := run["goodput"]:
        targets = ", ".join(
            f"{METRIC_NAMES[name]} {milliseconds(seconds)} ms met by {goodput['met'][name]:,}"
            for name, seconds in goodput["targets"].items()
        )
        yield (
            f"goodput {goodput['requests_per_second']:,.2f} requests/s: "
            f"{goodput['requests']:,} ({goodput['share']:.1%}) met every target; {targets}"
        )
    if tokens["prompt"] and tokens["output"]:
        cached = tokens["cached"]
        yield (
            f"prompts: mean {tokens['prompt']['mean']:,.0f} tokens"
            + (f" ({cached['mean']:,.0f} of them cached)" if cached and cached["max"] else "")
            + f"; answers: mean {tokens['output']['mean']:,.1f}, {tokens['per_event']:.2f} tokens "
            "per event"
        )
    generator = run["generator"]
    lag = generator["loop_lag"]
    yield (
        f"load tester: {generator['cpu_share']:.0%} of a core"
        + (f", event loop late by {milliseconds(lag['p99'])} ms (p99)" if lag else "")
    )


def sweep_table(server: Mapping[str, Any]) -> Table:
    """One line for each run on a server: how latency grows with load."""
    names = ["load", "done", "failed", "tokens/s"]
    names += [f"{name}\n{p}" for name in ("TTFT", "ITL", "E2E") for p in ("p50", "p99")]
    names += ["goodput\nper s"] if server["runs"][0]["goodput"] else []
    table = Table(*names, box=None, pad_edge=False)
    for column in table.columns:
        column.justify = "right"
    for run in server["runs"]:
        cells = [
            run["load"]["label"],
            f"{run['requests']['completed']:,}",
            f"{run['requests']['failed']:,}",
            f"{run['throughput']['output_tokens_per_second']:,.1f}",
        ]
        for name in ("ttft", "itl", "e2e"):
            summary = run["latency"][name]
            cells += [milliseconds(summary[p]) if summary else "-" for p in ("p50", "p99")]
        if run["goodput"]:
            cells.append(f"{run['goodput']['requests_per_second']:,.2f}")
        table.add_row(*cells)
    return table


def milliseconds(seconds: float) -> str:
    """Three digits that count, or whole milliseconds."""
    value = 1e3 * seconds
    digits = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:,.{digits}f}"
