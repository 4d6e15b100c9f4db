"""Pictures of what `dijiang bench` measured. matplotlib is loaded only here."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Panel:
    """One plot: something measured at several places of a logarithmic axis."""

    title: str
    x_label: str
    y_label: str
    rows: Sequence[Row]
    place: str
    """The key of a row that says where it stands."""
    lines: Mapping[str, Callable[[Row], float]]
    """What is drawn, by name."""
    floor: float | None = None
    """Where a dotted line marks equality."""


def engine_panels(result: Row) -> list[Panel]:
    """Of the result of `Bench.run`: decode by batch and by position, prefill by length."""
    speed = {"engine": lambda row: row["tokens_per_second"]}
    y = "tokens per second"
    panels = [Panel("Decode by batch", "sequences", y, result["decode_by_batch"], "batch", speed)]
    if by_position := result["decode_by_position"]:
        rows = by_position["rows"]
        panels.append(Panel("Decode by position", "tokens read", y, rows, "position", speed))
    rows = result["prefill_by_length"]
    panels.append(Panel("Prefill by length", "tokens of a prompt", y, rows, "length", speed))
    return panels


def ratio_panels(result: Row) -> list[Panel]:
    """Of the result of `RatioBench.run`: for each batch and for prompts, the peers by position."""
    panels = []
    for batch in sorted({row["batch"] for row in result["decode"]}):
        rows = sorted(
            (row for row in result["decode"] if row["batch"] == batch),
            key=lambda row: row["position"],
        )
        panels.append(_ratio_panel(f"Decode, batch {batch}", "tokens read", rows, "position"))
    if result["prefill"]:
        rows = sorted(result["prefill"], key=lambda row: row["length"])
        panels.append(_ratio_panel("Prefill", "tokens of a prompt", rows, "length"))
    return panels


def _ratio_panel(title: str, x_label: str, rows: Sequence[Row], place: str) -> Panel:
    lines: dict[str, Callable[[Row], float]] = {
        name: lambda row, name=name: row["speed_ups"][name]  # type: ignore[misc]
        for name in rows[0]["speed_ups"]
    }
    if lines:
        return Panel(title, x_label, "times as fast as the peer", rows, place, lines, floor=1.0)
    share = "matrix_share" if place == "length" else "roofline_share"
    return Panel(title, x_label, "share of the roofline", rows, place, {"engine": _get(share)})


def _get(key: str) -> Callable[[Row], float]:
    def get(row: Row) -> float:
        value: float = row[key]
        return value

    return get


def caption(result: Row) -> str:
    """The model, the machine and the commit, without which no figure means anything."""
    model, machine = result["model"], result["machine"]
    return (
        f"{model['name']}, {model['dtype']}; {machine['cpu']}, {machine['threads']} threads; "
        f"commit {machine['commit']}"
    )


def plot(panels: Sequence[Panel], caption: str, path: Path) -> None:
    """Draw panels side by side, as PNG or SVG by the suffix."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(panels), 3.9), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _draw(axes, panel)
    figure.supxlabel(caption, fontsize="small", color="0.35")
    figure.savefig(path, dpi=110)


def _draw(axes: "Axes", panel: Panel) -> None:
    from matplotlib.ticker import LogLocator

    places = [row[panel.place] for row in panel.rows]
    for (name, value), marker in zip(panel.lines.items(), "osD^v", strict=False):
        values = [value(row) for row in panel.rows]
        axes.plot(places, values, marker=marker, markersize=5, linewidth=1.4, label=name)
        axes.annotate(
            f"{values[-1]:,.3g}" if values[-1] < 1000 else f"{values[-1]:,.0f}",
            (places[-1], values[-1]),
            textcoords="offset points",
            xytext=(0, 6),
            ha="right",
        )
    axes.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)
    axes.set_xscale("log", base=2)
    axes.set_xticks(places, [f"{place:,}" for place in places])
    axes.minorticks_off()
    axes.margins(y=0.15)
    if panel.floor is None:
        axes.set_ylim(0, 1.15 * axes.dataLim.ymax)
    else:
        axes.set_yscale("log")
        axes.axhline(panel.floor, color="0.4", linestyle=":")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}x")
        axes.yaxis.set_minor_formatter("")
    axes.grid(alpha=0.3)
    if len(panel.lines) > 1 or panel.floor is not None:
        axes.legend(frameon=False)
