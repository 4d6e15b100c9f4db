"""Reports: their format, and what is made of them."""

import base64
import copy
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from clients.loadtest.compare import comparison_rows, join_reports, print_comparison
from clients.loadtest.errors import LoadTestError
from clients.loadtest.html import page
from clients.loadtest.options import Load, LoadOptions, ServerOptions
from clients.loadtest.plots import figures, write_plots
from clients.loadtest.report import error_rate, read_report, write_report
from clients.loadtest.run import run
from clients.loadtest.table import milliseconds, print_report
from clients.loadtest.targets import Target
from tests.clients.loadtest.conftest import QUICK, Fake, starting_fakes

SECRET = "sk-very-secret"
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    """A sweep of two loads on two servers, with goodput."""
    options = LoadOptions(
        loads=(Load("rate", 50), Load("rate", 100)),
        warmup_seconds=0.05,
        num_requests=15,
        targets=(Target("ttft", 0.5), Target("itl", 0.2)),
    )
    with starting_fakes() as start:
        fake = start(**QUICK)
        servers = [ServerOptions(fake.url, api_key=SECRET), ServerOptions(fake.url + "/v1")]
        return run(servers, options)


@pytest.fixture
def report(measured: dict[str, Any]) -> dict[str, Any]:
    """A copy of it, to be changed."""
    return copy.deepcopy(measured)


@pytest.fixture(scope="module")
def shown_page(measured: dict[str, Any]) -> str:
    return page(measured)


def printed(report: dict[str, Any]) -> str:
    console = Console(width=80, color_system=None, highlight=False)
    with console.capture() as capture:
        print_report(report, console)
        print_comparison(report, console)
    return capture.get()


def test_a_report_comes_back_from_its_file(report: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    write_report(report, file)
    assert read_report(file) == json.loads(json.dumps(report))


def test_a_report_holds_what_the_documentation_lists(report: dict[str, Any]) -> None:
    docs = Path(__file__).parents[3] / "docs" / "loadtest.md"
    section = docs.read_text(encoding="utf-8").split("## The report as JSON")[1]
    listed = re.findall(r"^\| `([a-z_.\[\]]+)` \|", section, re.M)
    top = set(report) | {f"servers[].{name}" for name in report["servers"][0]}
    runs = {f"runs[].{name}" for name in report["servers"][0]["runs"][0]}
    assert set(listed) == top | runs


def test_nothing_that_is_written_holds_the_key(report: dict[str, Any], shown_page: str) -> None:
    for text in (json.dumps(report), shown_page, printed(report)):
        assert SECRET not in text
    assert SECRET not in repr(ServerOptions("http://x", api_key=SECRET))


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"format": "dijiang-loadtest/0"}'])
def test_what_is_not_a_report_is_refused(content: str | None, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(LoadTestError, match="report"):
        read_report(file)


def test_the_tables_fit_a_terminal_and_name_every_load(report: dict[str, Any]) -> None:
    shown = printed(report)
    assert max(len(line) for line in shown.splitlines()) <= 80
    for word in ("50/s", "100/s", "TTFT", "ITL", "TPOT", "E2E", "goodput", "tokens/s", "load test"):
        assert word in shown
    assert "…" not in shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.0005, "0.50"), (0.01234, "12.3"), (0.1234, "123"), (12.3456, "12,346")],
)
def test_times_have_digits_that_count(seconds: float, shown: str) -> None:
    assert milliseconds(seconds) == shown


def test_plots_are_pictures(report: dict[str, Any], tmp_path: Path) -> None:
    write_plots(report, tmp_path / "plots")
    written = {file.name: file.read_bytes() for file in (tmp_path / "plots").iterdir()}
    assert set(written) == {"latency.png", "timeline.png", "sweep.png"}
    assert all(data.startswith(PNG_MAGIC) for data in written.values())


def test_every_axis_of_every_plot_has_a_name_and_a_unit(report: dict[str, Any]) -> None:
    drawn = figures(report)
    units = ("ms", "%", "per second", "seconds", "requests in flight")
    for figure in drawn.values():
        for ax in figure.axes:
            assert any(unit in ax.get_ylabel() for unit in units)
        assert any(unit in figure.axes[-1].get_xlabel() + "ms" for unit in units)


def test_a_plot_shows_the_figures_of_the_report(report: dict[str, Any]) -> None:
    drawn = figures(report)
    runs = [run for server in report["servers"] for run in server["runs"]]
    medians = []
    for line in drawn["latency"].axes[0].lines[: len(runs)]:
        xs, ys = line.get_data()
        medians.append(dict(zip(ys, xs, strict=True))[50.0])
    assert medians == pytest.approx([1e3 * run["latency"]["ttft"]["p50"] for run in runs])
    throughput = drawn["sweep"].axes[3].lines[0].get_ydata()
    expected = [run["throughput"]["output_tokens_per_second"] for run in runs[:2]]
    assert list(throughput) == pytest.approx(expected)


class PageReader(HTMLParser):
    """Collects what a page refers to, and checks that its elements are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_needs_nothing_from_anywhere(shown_page: str) -> None:
    reader = PageReader()
    reader.feed(shown_page)
    assert reader.open == []
    assert reader.links
    assert all(link.startswith("data:") for link in reader.links)
    assert "script" not in reader.tags
    assert "url(" not in shown_page
    assert "@import" not in shown_page
    pictures = [link for link in reader.links if link.startswith("data:image/png;base64,")]
    assert len(pictures) == 3
    for picture in pictures:
        assert base64.b64decode(picture.partition(",")[2]).startswith(PNG_MAGIC)


def test_what_a_server_says_cannot_become_markup(report: dict[str, Any]) -> None:
    report["servers"][0]["model"] = "<script>alert(1)</script>"
    errors = report["servers"][0]["runs"][0]["requests"]["errors"]
    errors["http_500"] = {"count": 1, "message": "<img src=http://evil> [red]x[/red] $x_$"}
    reader = PageReader()
    reader.feed(page(report))
    assert "script" not in reader.tags
    assert all(link.startswith("data:") for link in reader.links)
    # Nor a style of the terminal.
    assert "[red]x[/red]" in printed(report)


def test_a_comparison_says_which_is_better(report: dict[str, Any]) -> None:
    first = report["servers"][0]["runs"][0]
    second = copy.deepcopy(first)
    second["latency"]["ttft"]["p99"] *= 0.5
    second["latency"]["e2e"]["p50"] *= 1.2
    second["throughput"]["output_tokens_per_second"] *= 2
    second["throughput"]["requests_per_second"] *= 1.01
    rows = {row.name: row for row in comparison_rows([first, second])}
    assert rows["TTFT p99, ms"].verdict == "better"
    assert rows["E2E p50, ms"].verdict == "worse"
    assert rows["output tokens/s"].verdict == "better"
    assert rows["requests/s"].verdict == "same"
    assert rows["output tokens/s"].ratio == pytest.approx(2)


def test_reports_are_compared_load_by_load(report: dict[str, Any]) -> None:
    other = copy.deepcopy(report)
    other["options"]["seed"] = 7
    other["servers"][0]["runs"].pop(0)
    joined = join_reports(report, other, ("before", "after"))
    shown = printed(joined)
    assert "A: before" in shown
    assert "seed: 0 and 7" in shown
    assert joined["servers"][1]["name"] == "after"
    other["servers"][0]["runs"].clear()
    with pytest.raises(LoadTestError, match="no load in common"):
        join_reports(report, other, ("before", "after"))


def test_the_error_rate_is_over_all_runs(report: dict[str, Any]) -> None:
    assert error_rate(report) == 0.0
    report["servers"][0]["runs"][0]["requests"]["failed"] = 6
    assert error_rate(report) == pytest.approx(6 / 60)


def test_a_sweep_asks_both_servers_the_same(quick: Fake) -> None:
    servers = [ServerOptions(quick.url), ServerOptions(quick.url)]
    run(servers, LoadOptions(loads=(Load("concurrency", 1),), warmup_seconds=0.0, num_requests=4))
    sent = [body["messages"] for body in quick.counts()["bodies"]]
    assert sent[:4] == sent[4:]
