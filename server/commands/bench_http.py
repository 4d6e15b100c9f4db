"""`dijiang bench-http`."""

import contextlib
import json
import statistics
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from server.commands.bench import check_dtype
from server.commands.bench_server import running_server
from server.commands.common import fail, log_plainly, model_folder

STREAM_SECONDS = 120.0
PROMPT = (1, 2, 3)
CLOCK_SECONDS = 1e-6
"""Shorter gaps are not told apart."""

Times = list[list[float]]


def bench_http(
    model: Annotated[
        Path | None, typer.Argument(help="A DiJiang model folder. Default: --shape.")
    ] = None,
    shape: Annotated[
        str,
        typer.Option(help="A published Pythia shape, with random weights: pythia-70m to -2.8b."),
    ] = "pythia-70m",
    dtype: Annotated[
        str, typer.Option(help="Of the weights: auto (what serve takes), float32, bfloat16, int8.")
    ] = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Engine threads. Default: all cores but one.")
    ] = None,
    streams: Annotated[int, typer.Option(min=1, help="Streams at once.")] = 32,
    tokens: Annotated[int, typer.Option(min=8, help="Tokens of each stream.")] = 200,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds that each figure comes from.")] = 15,
    api_workers: Annotated[
        int | None,
        typer.Option(min=2, max=64, help="Measure a server with so many API workers as well."),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write everything measured to this file.")
    ] = None,
) -> None:
    """Compare a server's tokens per second with those of the engine alone, in turns, in one run.

    Starts `dijiang serve` in processes of its own, with an engine of as many threads as the one in
    this process. Both run the same greedy requests; what counts is the time in which all streams
    run. The client shares the machine, and reads at the least cost there is.

    Examples:

        dijiang bench-http

        dijiang bench-http ./model --dtype float32 --streams 8 --rounds 5

        dijiang bench-http --streams 256 --api-workers 4
    """
    log_plainly()
    from dijiang_runtime.bench.facts import describe_machine
    from dijiang_runtime.bench.streams import EngineAlone
    from dijiang_runtime.config import EngineConfig
    from dijiang_runtime.engine.engine import Engine

    check_dtype(dtype)
    with contextlib.ExitStack() as stack:
        folder = model_folder(model) if model else stack.enter_context(random_folder(shape))
        options: dict[str, Any] = {
            "model": folder,
            "dtype": dtype,
            "num_threads": threads,
            "max_slots": streams,
        }
        alone = EngineAlone(Engine.from_config(EngineConfig(**options)))
        flags = [f"--max-slots={streams}", f"--dtype={dtype}"]
        flags += [f"--num-threads={threads}"] if threads else []
        servers = {"server": stack.enter_context(running_server(folder, flags))}
        if api_workers is not None:
            flags.append(f"--api-workers={api_workers}")
            several = stack.enter_context(running_server(folder, flags))
            servers[f"server, {api_workers} workers"] = several
        contenders: dict[str, Callable[[], Times]] = {
            "engine": lambda: alone.run(PROMPT, streams, tokens)
        }
        for name, server in servers.items():
            contenders[name] = partial(through_http, server.url, streams, tokens)
        for contender in contenders.values():
            contender()
        found: dict[str, list[Times]] = {name: [] for name in contenders}
        before = {name: server.cpu_seconds() for name, server in servers.items()}
        for _ in range(rounds):
            for name, contender in contenders.items():
                found[name].append(contender())
        num_events = rounds * streams * tokens
        busy = {
            name: {
                role: 1e6 * (seconds - before[name][role]) / num_events
                for role, seconds in server.cpu_seconds().items()
            }
            for name, server in servers.items()
        }
    result = {
        "machine": describe_machine(),
        "options": {"model": model.name if model else f"{shape}, random weights", "dtype": dtype}
        | {"streams": streams, "tokens": tokens, "rounds": rounds},
        "ready_seconds": servers["server"].ready_seconds,
        "api_cpu_us_per_event": busy,
        **figures(found, tokens),
    }
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print_result(result)


@contextlib.contextmanager
def random_folder(shape: str) -> Iterator[Path]:
    """A model folder of a published shape, removed in the end."""
    from dijiang_runtime.bench.facts import shape_config
    from dijiang_runtime.bench.made_up import write_random_folder

    with tempfile.TemporaryDirectory(prefix="dijiang-bench-") as folder:
        write_random_folder(shape_config(shape), Path(folder))
        yield Path(folder)


def through_http(url: str, num_streams: int, num_tokens: int) -> Times:
    """The times of every event of every stream."""
    from clients.loadtest.connections import parse_address
    from clients.loadtest.raw_streams import read_streams

    address = parse_address(url)
    body = json.dumps(
        {"prompt": PROMPT, "max_tokens": num_tokens, "temperature": 0, "ignore_eos": True}
        | {"stream": True}
    )
    request = (
        f"POST /v1/completions HTTP/1.1\r\nHost: {address.authority}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    ).encode()
    streams = read_streams(address, [request] * num_streams, timeout_seconds=STREAM_SECONDS)
    return [stream.times for stream in streams]


def figures(found: dict[str, list[Times]], num_tokens: int) -> dict[str, Any]:
    """Medians over the rounds, and the ratio, which is taken round by round."""
    from clients.loadtest.statistics import summarize
    from dijiang_runtime.bench.streams import steady_gaps, steady_speed

    gaps = {name: [steady_gaps(r) for r in rounds] for name, rounds in found.items()}
    if any(len(of_round) < 2 for rounds in gaps.values() for of_round in rounds):
        fail("the streams did not run all at once: ask for more --tokens.")
    speeds = {name: [steady_speed(r, num_tokens) for r in rounds] for name, rounds in found.items()}
    result: dict[str, Any] = {}
    for name, rounds in gaps.items():
        result[name] = {
            "tokens_per_second": summarize(speeds[name]),
            "itl_seconds": summarize(gap for of_round in rounds for gap in of_round),
            "itl_p99_over_p50": statistics.median(map(_tail, rounds)),
        }
    for name in result:
        ratios = [s / e for e, s in zip(speeds["engine"], speeds[name], strict=True)]
        result[name]["ratio"] = summarize(ratios)
    return result


def _tail(gaps: list[float]) -> float:
    """99th percentile over median, which is 0 where most tokens come with another."""
    cuts = statistics.quantiles(gaps, n=100, method="inclusive")
    return cuts[98] / max(cuts[49], CLOCK_SECONDS)


def print_result(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    machine, options = result["machine"], result["options"]
    console.print(
        f"{options['model']}, {options['dtype']}, {options['streams']} streams of "
        f"{options['tokens']} tokens, {options['rounds']} rounds\n"
        f"{machine['cpu']}, {machine['threads']} engine threads of {machine['cores']} cores, "
        f"commit {machine['commit']}",
        soft_wrap=True,
    )
    table = Table("", "tokens/s", "ITL p50, ms", "p99, ms", "p99 / p50, median of rounds")
    names = ["engine", *result["api_cpu_us_per_event"]]
    for name in names:
        row = result[name]
        gaps = row["itl_seconds"]
        table.add_row(
            name,
            f"{row['tokens_per_second']['p50']:,.0f}",
            f"{1e3 * gaps['p50']:.2f}",
            f"{1e3 * gaps['p99']:.2f}",
            f"{row['itl_p99_over_p50']:.2f}",
        )
    console.print(table)
    for name, busy in result["api_cpu_us_per_event"].items():
        ratio = result[name]["ratio"]
        cpu = ", ".join(f"{role}: {us:.0f} us" for role, us in busy.items())
        console.print(
            f"{name.capitalize()} / engine: {ratio['p50']:.3f} "
            f"({ratio['min']:.3f} to {ratio['max']:.3f}). CPU an event, {cpu}.",
            soft_wrap=True,
        )
    console.print(f"Start to ready: {result['ready_seconds']:.2f} s.")
