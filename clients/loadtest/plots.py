"""Plots of a report. matplotlib is loaded only here, and draws into memory: no window, no state."""

import io
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clients.loadtest.errors import LoadTestError
from clients.loadtest.report import server_name
from clients.loadtest.table import METRIC_NAMES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which people with any colour vision can tell apart.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#7f7f7f", "#000000")
LINE_STYLES = ("-", "--", ":", "-.")
TARGET_COLOUR = "#c00000"
LONG_NAMES = {
    "ttft": "Time to first token",
    "itl": "Inter-token latency",
    "tpot": "Time per output token",
    "e2e": "End-to-end latency",
}
DPI = 110


@dataclass(frozen=True, slots=True)
class Line:
    """A run with the look that it has in every plot: a colour for the load, a dash for the
    server."""

    run: Mapping[str, Any]
    label: str
    colour: str
    style: str


def lines_of(report: Mapping[str, Any]) -> Iterator[Line]:
    """Every run of a report, ready to be drawn."""
    servers = report["servers"]
    loads: list[str] = []
    for number, server in enumerate(servers):
        for run in server["runs"]:
            load = run["load"]["label"]
            if load not in loads:
                loads.append(load)
            label = load if len(servers) == 1 else f"{load}, {short_name(server)}"
            colour = COLOURS[loads.index(load) % len(COLOURS)]
            yield Line(run, label, colour, LINE_STYLES[number % len(LINE_STYLES)])


def short_name(server: Mapping[str, Any]) -> str:
    return str(server.get("name") or server["url"].partition("://")[2])


def figures(report: Mapping[str, Any]) -> dict[str, "Figure"]:
    """The figures that a report has, by name.

    Raises:
        LoadTestError: matplotlib is not installed.
    """
    lines = list(lines_of(report))
    drawn = {"latency": latency_figure(report, lines), "timeline": timeline_figure(report, lines)}
    if any(len(server["runs"]) > 1 for server in report["servers"]):
        drawn["sweep"] = sweep_figure(report)
    return drawn


def write_plots(report: Mapping[str, Any], folder: Path) -> None:
    """Write every figure as a PNG into a folder, which is made."""
    drawn = figures(report)
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in drawn.items():
        (folder / f"{name}.png").write_bytes(as_png(figure))


def as_png(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def latency_figure(report: Mapping[str, Any], lines: Sequence[Line]) -> "Figure":
    """Which share of requests, or of gaps, was at most so slow."""
    figure, axes = new_figure(f"Latency: {title(report)}", 2, 2)
    for ax, (metric, name) in zip(axes, LONG_NAMES.items(), strict=True):
        for line in lines:
            points = line.run["distribution"][metric]
            ax.plot(
                [1e3 * value for value, _ in points],
                [100 * fraction for _, fraction in points],
                line.style,
                color=line.colour,
                label=line.label,
            )
        draw_target(ax, report, metric, ax.axvline)
        what = "gaps" if metric == "itl" else "requests"
        label_axes(ax, f"{name} ({METRIC_NAMES[metric]}), ms", f"{what} at most so slow, %")
        ax.set_ylim(0, 100.5)
        if ax.get_xlim()[1] > 20 * max(ax.dataLim.x0, 1e-3) and ax.dataLim.x0 > 0:
            use_log_scale(ax)
        else:
            ax.set_xlim(left=0)
    place_legend_below(figure, axes[0])
    return figure


def timeline_figure(report: Mapping[str, Any], lines: Sequence[Line]) -> "Figure":
    """Output tokens per second, and requests in flight, over the time of the runs."""
    figure, axes = new_figure(f"Over time: {title(report)}", 2, 1)
    for line in lines:
        timeline = line.run["timeline"]
        width = timeline["bin_seconds"]
        edges = [i * width for i in range(len(timeline["tokens"]) + 1)]
        rates = [count / width for count in timeline["tokens"]]
        look: Any = {"color": line.colour, "linestyle": line.style, "label": line.label}
        axes[0].stairs(rates, edges, **look)
        axes[1].stairs(timeline["running"], edges, **look)
        failed = [i for i, count in enumerate(timeline["failed"]) if count]
        if failed:
            axes[1].plot(
                [(i + 0.5) * width for i in failed],
                [timeline["running"][i] for i in failed],
                "x",
                color=TARGET_COLOUR,
                label=f"failures, {line.label}",
            )
    label_axes(axes[0], "", "output tokens per second")
    label_axes(axes[1], "seconds since the run began", "requests in flight")
    for ax in axes:
        ax.set_xlim(left=0)
        ax.set_ylim(bottom=0)
        shade_the_rest(ax, report["options"])
    place_legend_below(figure, axes[1])
    return figure


def shade_the_rest(ax: "Axes", options: Mapping[str, Any]) -> None:
    """Grey what does not count towards throughput: the warm-up, and the time after the sending."""
    end = ax.get_xlim()[1]
    warmup, duration = options["warmup_seconds"], options["duration_seconds"]
    if warmup:
        ax.axvspan(0, warmup, color="#eeeeee", zorder=0, label="warm-up")
    if duration and warmup + duration < end:
        ax.axvspan(warmup + duration, end, color="#f6f6f6", zorder=0, label="nothing more is sent")
    ax.set_xlim(0, end)


def place_legend_below(figure: "Figure", *axes: "Axes") -> None:
    """One legend of what these axes show, where it hides nothing."""
    entries = [zip(*ax.get_legend_handles_labels(), strict=True) for ax in axes]
    handles, labels = zip(*itertools.chain(*entries), strict=True)
    longest = max(map(len, labels), default=1)
    columns = max(1, min(len(labels), 110 // (longest + 8)))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)


def sweep_figure(report: Mapping[str, Any]) -> "Figure":
    """Latency and throughput against load."""
    figure, axes = new_figure(f"Against load: {title(report)}", 2, 2)
    for number, server in enumerate(report["servers"]):
        runs = sorted(server["runs"], key=lambda run: run["load"]["value"])
        prefix = f"{short_name(server)}, " if len(report["servers"]) > 1 else ""
        style = LINE_STYLES[number % len(LINE_STYLES)]
        for ax, metric in zip(axes, ("ttft", "itl", "e2e"), strict=False):
            for colour, statistic in zip(COLOURS, ("p50", "p95", "p99"), strict=False):
                points = [(r["load"]["value"], r["latency"][metric]) for r in runs]
                known = [(x, 1e3 * y[statistic]) for x, y in points if y]
                label = f"{prefix}{statistic}"
                draw_points(ax, known, colour, style, label)
        rates = [(r["load"]["value"], r["throughput"]["output_tokens_per_second"]) for r in runs]
        draw_points(axes[3], rates, COLOURS[7], style, f"{prefix}output tokens/s")
    for ax, metric in zip(axes, ("ttft", "itl", "e2e"), strict=False):
        draw_target(ax, report, metric, ax.axhline)
        label_axes(ax, load_label(report), f"{LONG_NAMES[metric]}, ms")
        ax.set_ylim(bottom=0)
    label_axes(axes[3], load_label(report), "output tokens per second")
    draw_goodput(axes[3], report)
    axes[3].set_ylim(bottom=0)
    place_legend_below(figure, axes[0], axes[3])
    return figure


def draw_points(
    ax: "Axes", points: Sequence[tuple[float, float]], colour: str, style: str, label: str
) -> None:
    xs, ys = [x for x, _ in points], [y for _, y in points]
    ax.plot(xs, ys, color=colour, linestyle=style, marker="o", markersize=4, label=label)


def draw_goodput(ax: "Axes", report: Mapping[str, Any]) -> None:
    """Goodput has a scale of its own, on the right."""
    if not report["options"]["targets"]:
        return
    right = ax.twinx()
    right.spines["top"].set_visible(False)
    for number, server in enumerate(report["servers"]):
        runs = sorted(server["runs"], key=lambda run: run["load"]["value"])
        points = [(r["load"]["value"], r["goodput"]["requests_per_second"]) for r in runs]
        style = LINE_STYLES[number % len(LINE_STYLES)]
        draw_points(right, points, COLOURS[3], style, "")
        # The legend of the left axis speaks for both.
        prefix = f"{short_name(server)}, " if len(report["servers"]) > 1 else ""
        draw_points(ax, [], COLOURS[3], style, f"{prefix}goodput (right)")
    right.set_ylabel("goodput, requests per second", color=COLOURS[3])
    right.set_ylim(bottom=0)


def draw_target(ax: "Axes", report: Mapping[str, Any], metric: str, draw: Any) -> None:
    if target := report["options"]["targets"].get(metric):
        look: Any = {"color": TARGET_COLOUR, "linewidth": 1, "linestyle": (0, (4, 3))}
        draw(1e3 * target, label="target", **look)


def load_label(report: Mapping[str, Any]) -> str:
    kind = report["servers"][0]["runs"][0]["load"]["kind"]
    return "users (closed loop)" if kind == "concurrency" else "requests per second (open loop)"


def title(report: Mapping[str, Any]) -> str:
    names = [str(server.get("name") or server_name(server)) for server in report["servers"]]
    return " and ".join(names)


def label_axes(ax: "Axes", x: str, y: str) -> None:
    ax.set_xlabel(x)
    ax.set_ylabel(y)


def use_log_scale(ax: "Axes") -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())


def new_figure(heading: str, num_rows: int, num_columns: int) -> tuple["Figure", list["Axes"]]:
    """A figure with its axes, row by row, on a canvas without a window."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as exc:
        raise LoadTestError("plots need matplotlib: pip install 'dijiang-serving[plots]'.") from exc
    figure = Figure(figsize=(9.5, 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(heading, fontsize=12)
    axes = list(figure.subplots(num_rows, num_columns, squeeze=False).flat)
    for ax in axes:
        ax.grid(color="#dddddd", linewidth=0.6)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes
