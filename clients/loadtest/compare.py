"""Two servers, or two reports of one, side by side."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from clients.loadtest.errors import LoadTestError
from clients.loadtest.report import server_name
from clients.loadtest.table import METRIC_NAMES, milliseconds

NOTABLE_CHANGE = 0.1
"""Smaller changes are not coloured: two runs of one server differ by as much."""


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of both. `is_better_high` says which direction is good."""

    name: str
    values: tuple[float | None, float | None]
    is_latency: bool

    @property
    def ratio(self) -> float | None:
        """The second over the first."""
        first, second = self.values
        return second / first if first and second is not None else None

    @property
    def verdict(self) -> str:
        """`better`, `worse` or `same`, for the second."""
        if self.ratio is None or abs(self.ratio - 1) < NOTABLE_CHANGE:
            return "same"
        return "better" if (self.ratio < 1) == self.is_latency else "worse"

    def cells(self) -> list[str]:
        show = milliseconds if self.is_latency else "{:,.2f}".format
        values = ["-" if value is None else show(value) for value in self.values]
        return [self.name, *values, "-" if self.ratio is None else f"{self.ratio:.2f}x"]


def join_reports(
    first: Mapping[str, Any], second: Mapping[str, Any], names: tuple[str, str]
) -> dict[str, Any]:
    """One report of two servers, made of the first server of either report.

    Raises:
        LoadTestError: they have no load in common.
    """
    servers = []
    for report, name in zip((first, second), names, strict=True):
        server = report["servers"][0]
        servers.append({**server, "name": name})
    joined = {**first, "servers": servers, "differences": list(_differences(first, second))}
    if not list(paired_runs(joined)):
        raise LoadTestError("the reports have no load in common.")
    return joined


def _differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[str]:
    """What else differed than the server, so that nobody is misled."""
    a, b = first["options"], second["options"]
    for name in a:
        if name != "loads" and a[name] != b.get(name):
            yield f"{name}: {a[name]} and {b.get(name)}"
    for name in ("cpu", "cores", "version"):
        if first["machine"][name] != second["machine"][name]:
            yield f"{name}: {first['machine'][name]} and {second['machine'][name]}"


def paired_runs(report: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """The runs of the first two servers under the same load."""
    first, second = report["servers"][:2]
    others = {run["load"]["label"]: run for run in second["runs"]}
    for run in first["runs"]:
        if other := others.get(run["load"]["label"]):
            yield run, other


def comparison_rows(runs: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    """The figures that matter, of two runs."""
    for metric, shown in METRIC_NAMES.items():
        for statistic in ("p50", "p99"):
            values = [(run["latency"][metric] or {}).get(statistic) for run in runs]
            yield Row(f"{shown} {statistic}, ms", (values[0], values[1]), is_latency=True)
    for name in ("output_tokens_per_second", "requests_per_second"):
        rates = [run["throughput"][name] for run in runs]
        shown = name.replace("_per_second", "/s").replace("_", " ")
        yield Row(shown, (rates[0], rates[1]), is_latency=False)
    if all(run["goodput"] for run in runs):
        good = [run["goodput"]["requests_per_second"] for run in runs]
        yield Row("goodput, requests/s", (good[0], good[1]), is_latency=False)
    successes = [1 - run["requests"]["error_rate"] for run in runs]
    yield Row("share completed", (successes[0], successes[1]), is_latency=False)


def print_comparison(report: Mapping[str, Any], console: Console) -> None:
    """Print a table for each load that both servers were put under."""
    first, second = (display_name(server) for server in report["servers"][:2])
    console.print(Text(f"\nA: {first}\nB: {second}", style="bold"))
    for difference in report.get("differences", []):
        console.print(Text(f"Not the same in both: {difference}", style="yellow"))
    colours = {"better": "green", "worse": "red", "same": ""}
    for runs in paired_runs(report):
        table = Table(runs[0]["load"]["label"], "A", "B", "B / A", "", box=None, pad_edge=False)
        for column in table.columns[1:4]:
            column.justify = "right"
        for row in comparison_rows(runs):
            verdict = "" if row.verdict == "same" else row.verdict
            table.add_row(*row.cells(), verdict, style=colours[row.verdict])
        console.print()
        console.print(table)


def display_name(server: Mapping[str, Any]) -> str:
    """The name that a comparison gave a server, with where it is."""
    name = server_name(server)
    return f"{server['name']} ({name})" if "name" in server else name
