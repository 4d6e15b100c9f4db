"""A picture of loss by position and recall by distance, of a parent and its children."""

from collections.abc import Sequence
from pathlib import Path

from dijiang_runtime.conversion.compare import Measured


def plot_comparison(measured: Sequence[Measured], path: Path) -> None:
    """Write both panels, with a line for each model, as PNG or SVG by the suffix."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    loss, recall = figure.subplots(1, 2)
    for model, marker in zip(measured, "osDv^<>ph" * len(measured), strict=False):
        style = {"marker": marker, "markersize": 4, "linewidth": 1.3, "label": model.name}
        of_model = model.evaluation.by_position
        loss.plot([b.stop for b in of_model], [b.loss for b in of_model], **style)
        recall.plot([r.distance for r in model.recall], [r.gain for r in model.recall], **style)
    loss.set(title="Loss by position", xlabel="tokens seen, up to", ylabel="nats per token")
    recall.set(
        title="Recall by distance",
        xlabel="tokens between a needle and its repetition",
        ylabel="nats per token gained by having read it",
    )
    recall.axhline(0, color="0.4", linestyle=":")
    for panel, ticks in (
        (loss, [b.stop for b in measured[0].evaluation.by_position]),
        (recall, [r.distance for r in measured[0].recall]),
    ):
        panel.set_xscale("log", base=2)
        panel.set_xticks(ticks)
        panel.get_xaxis().set_major_formatter("{x:.0f}")
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    figure.legend(*loss.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=110)
