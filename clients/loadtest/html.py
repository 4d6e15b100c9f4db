"""A report as one HTML page that needs nothing else: styles and pictures are inside it."""

import base64
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from clients.loadtest.compare import comparison_rows, display_name, paired_runs
from clients.loadtest.plots import as_png, figures
from clients.loadtest.report import all_runs, server_name
from clients.loadtest.statistics import PERCENTILES
from clients.loadtest.table import METRIC_NAMES, milliseconds, run_lines

STYLE = """
:root { color-scheme: light dark; --line: #d5d5d5; --soft: #f5f5f5; --warn: #8a5a00;
  --bad: #b00020; --good: #00693e; }
@media (prefers-color-scheme: dark) { :root { --line: #444; --soft: #222; --warn: #ffc14d;
  --bad: #ff8a95; --good: #6fdcaa; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.5rem; }
h3 { font-size: 1rem; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .8rem; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child { text-align: left; }
thead th { background: var(--soft); }
img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
.warning { color: var(--warn); } .worse, .error { color: var(--bad); }
.better { color: var(--good); }
"""

CAPTIONS = {
    "latency": "Cumulative distributions of the latencies of complete answers",
    "timeline": "Output tokens per second and requests in flight, over time",
    "sweep": "Latency, throughput and goodput against load",
}


def write_page(report: Mapping[str, Any], file: Path) -> None:
    """Write a report as one page.

    Raises:
        LoadTestError: matplotlib, which draws the pictures, is not installed.
    """
    file.write_text(page(report), encoding="utf-8")


def page(report: Mapping[str, Any]) -> str:
    heading = "Load test of " + " and ".join(display_name(s) for s in report["servers"])
    body = "\n".join(_sections(report))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{escape(heading)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escape(heading)}</h1>\n{body}\n</body>\n</html>\n"
    )


def _sections(report: Mapping[str, Any]) -> Iterator[str]:
    if report["is_interrupted"]:
        yield _paragraph("The load test was stopped early.", "warning")
    if len(list(all_runs(report))) > 1:
        yield f"<h2>Summary</h2>\n{_summary(report)}"
    if len(report["servers"]) > 1:
        yield from _comparison(report)
    for name, figure in figures(report).items():
        data = base64.b64encode(as_png(figure)).decode()
        yield (
            f'<h2>{CAPTIONS[name]}</h2>\n<img alt="{CAPTIONS[name]}" '
            f'src="data:image/png;base64,{data}">'
        )
    for server, run in all_runs(report):
        yield f"<h2>{escape(server_name(server))}, {escape(run['load']['label'])}</h2>"
        yield from _run(run)
    yield "<h2>How it was measured</h2>"
    yield _facts(report)


def _run(run: Mapping[str, Any]) -> Iterator[str]:
    columns = ["mean", *(f"p{p}" for p in PERCENTILES), "max"]
    rows = []
    for metric, name in METRIC_NAMES.items():
        summary = run["latency"][metric]
        rows.append([name, *(milliseconds(summary[c]) if summary else "-" for c in columns)])
    yield _table(["ms", *columns], rows)
    for line in run_lines(run):
        yield _paragraph(line)
    for kind, error in run["requests"]["errors"].items():
        yield _paragraph(f"{error['count']} x {kind}: {error['message']}", "error")
    for warning in run["generator"]["warnings"]:
        yield _paragraph(f"Warning: {warning}", "warning")


def _summary(report: Mapping[str, Any]) -> str:
    has_several = len(report["servers"]) > 1
    header = ["load", *(["server"] if has_several else [])]
    header += ["failed", "tokens/s", "requests/s"]
    header += [f"{METRIC_NAMES[m]} {p}, ms" for m in ("ttft", "itl", "e2e") for p in ("p50", "p99")]
    has_targets = bool(report["options"]["targets"])
    header += ["goodput/s"] if has_targets else []
    rows = []
    for server, run in all_runs(report):
        throughput, latency = run["throughput"], run["latency"]
        cells = [run["load"]["label"], *([display_name(server)] if has_several else [])]
        cells += [f"{run['requests']['failed']:,}"]
        cells += [f"{throughput['output_tokens_per_second']:,.1f}"]
        cells += [f"{throughput['requests_per_second']:,.2f}"]
        for metric in ("ttft", "itl", "e2e"):
            summary = latency[metric]
            cells += [milliseconds(summary[p]) if summary else "-" for p in ("p50", "p99")]
        if run["goodput"]:
            cells.append(f"{run['goodput']['requests_per_second']:,.2f}")
        rows.append(cells)
    return _table(header, rows)


def _comparison(report: Mapping[str, Any]) -> Iterator[str]:
    first, second = (display_name(server) for server in report["servers"][:2])
    yield "<h2>Side by side</h2>"
    yield _paragraph(f"A: {first}. B: {second}.")
    for difference in report.get("differences", []):
        yield _paragraph(f"Not the same in both: {difference}", "warning")
    for runs in paired_runs(report):
        rows = list(comparison_rows(runs))
        yield _table(
            [runs[0]["load"]["label"], "A", "B", "B / A"],
            [row.cells() for row in rows],
            [row.verdict for row in rows],
        )


def _facts(report: Mapping[str, Any]) -> str:
    facts = {"begun": report["created"], **report["options"]}
    facts |= {f"machine: {name}": value for name, value in report["machine"].items()}
    facts |= {name.replace("_", " "): v for name, v in report["token_scale"].items()}
    rows = [
        [name.replace("_", " "), ", ".join(value) if isinstance(value, list) else str(value)]
        for name, value in facts.items()
        if value not in (None, {}, "")
    ]
    return _table(["", ""], rows)


def _table(
    header: Sequence[str], rows: Sequence[Sequence[str]], classes: Sequence[str] = ()
) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    lines = []
    for number, row in enumerate(rows):
        kind = f' class="{classes[number]}"' if classes else ""
        lines.append(f"<tr{kind}>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>")
    body = "\n".join(lines)
    return (
        f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table></div>"
    )


def _paragraph(text: str, kind: str = "") -> str:
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"
