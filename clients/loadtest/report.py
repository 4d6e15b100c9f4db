"""Reports: the one format that tables, plots, pages and comparisons are made from, as JSON.

docs/loadtest.md lists the fields. `servers[i].runs[j]` is what `results.run_result` returns.
"""

import json
import math
import os
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from clients.loadtest.connections import parse_address
from clients.loadtest.errors import LoadTestError
from clients.loadtest.options import LoadOptions, ServerOptions
from clients.loadtest.text import TokenScale

FORMAT = "dijiang-loadtest/1"


def new_report(
    servers: Sequence[ServerOptions],
    models: Sequence[str],
    options: LoadOptions,
    scale: TokenScale,
) -> dict[str, Any]:
    """A report without runs."""
    return {
        "format": FORMAT,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine_facts(),
        "options": _option_facts(options),
        "token_scale": asdict(scale),
        "is_interrupted": False,
        "servers": [
            {"url": parse_address(server.base_url).url, "model": model, "runs": []}
            for server, model in zip(servers, models, strict=True)
        ],
    }


def _option_facts(options: LoadOptions) -> dict[str, Any]:
    span = options.span
    has_rates = any(load.kind == "rate" for load in options.loads)
    return {
        "loads": [load.label for load in options.loads],
        "arrivals": options.arrivals if has_rates else None,
        **asdict(options.workload),
        "text": options.text.name if options.text else None,
        "endpoint": options.endpoint,
        "warmup_seconds": span.warmup_seconds,
        "duration_seconds": None if math.isinf(span.duration_seconds) else span.duration_seconds,
        "num_requests": span.num_requests,
        "max_concurrency": options.max_concurrency,
        "timeout_seconds": options.timeout_seconds,
        "seed": options.seed,
        "targets": {target.metric: target.seconds for target in options.targets},
        "extra": dict(options.extra),
    }


def machine_facts() -> dict[str, Any]:
    """Where the load tester runs."""
    try:
        version = metadata.version("dijiang-serving")
    except metadata.PackageNotFoundError:
        version = "unknown"
    return {
        "version": version,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def write_report(report: Mapping[str, Any], file: Path) -> None:
    """Write a report as JSON; `-` means standard output."""
    text = json.dumps(report, indent=1, allow_nan=False) + "\n"
    if str(file) == "-":
        sys.stdout.write(text)
    else:
        file.write_text(text, encoding="utf-8")


def read_report(file: Path) -> dict[str, Any]:
    """A report from a file.

    Raises:
        LoadTestError: the file cannot be read, or holds something else.
    """
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise LoadTestError(f"the report {file} cannot be read: {exc}") from exc
    if not isinstance(report, dict) or report.get("format") != FORMAT:
        raise LoadTestError(f"{file} is not a report of this load tester ({FORMAT}).")
    return report


def all_runs(report: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Every run with its server, in order."""
    for server in report["servers"]:
        for run in server["runs"]:
            yield server, run


def error_rate(report: Mapping[str, Any]) -> float:
    """Failed requests over measured ones, in all runs."""
    counts = [run["requests"] for _, run in all_runs(report)]
    measured = sum(count["measured"] for count in counts)
    return sum(count["failed"] for count in counts) / measured if measured else 0.0


def server_name(server: Mapping[str, Any]) -> str:
    """What tables and plots call a server."""
    return f"{server['model']} at {server['url'].partition('://')[2]}"
