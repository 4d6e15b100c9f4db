"""A picture of kernel errors by number of features."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from dijiang_runtime.kernelization.error import KernelError
from dijiang_runtime.kernelization.quasi_monte_carlo import RULES, Rule

LABELS: dict[Rule, str] = {
    "monte_carlo": "Monte Carlo",
    "qmc": "quasi-Monte Carlo",
    "weighted_qmc": "weighted quasi-Monte Carlo",
    "dct": "DCT, paper",
    "authors_dct": "DCT, authors' code",
}
_MARKERS = "osDv^"


def plot_kernel_errors(
    errors: Sequence[KernelError], uniform: Mapping[str, float], path: Path
) -> None:
    """Write one panel for each source, with a line for each rule, as PNG or SVG by the suffix."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sources = list(uniform)
    figure = Figure(figsize=(4.2 * len(sources), 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(sources), squeeze=False)[0]
    for panel, source in zip(panels, sources, strict=True):
        for rule, marker in zip(RULES, _MARKERS, strict=True):
            points = [e for e in errors if e.source == source and e.rule == rule]
            panel.errorbar(
                [e.num_features for e in points],
                [e.mean for e in points],
                yerr=[e.std for e in points],
                marker=marker,
                markersize=4,
                linewidth=1.3,
                capsize=2,
                label=LABELS[rule],
            )
        panel.axhline(uniform[source], color="0.4", linestyle=":", label="uniform attention")
        panel.set(title=source, xlabel="features", xscale="log", ylim=(0, None))
        panel.set_xticks(sorted({e.num_features for e in errors}))
        panel.get_xaxis().set_major_formatter("{x:.0f}")
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("relative error of the attention rows")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=110)
