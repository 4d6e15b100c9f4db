"""The pictures of `dijiang bench`."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dijiang_runtime.bench import plots
from server.cli import app

pytest.importorskip("matplotlib")

MODEL = {"name": "pythia-70m", "dtype": "int8"}
MACHINE = {"cpu": "a processor", "threads": 2, "commit": "abc", "gpu": None}


def decode(batch: int, position: int, **speed_ups: float) -> dict[str, Any]:
    return {
        "batch": batch,
        "position": position,
        "roofline_share": 0.7,
        "speed_ups": speed_ups,
    }


def test_peers_are_drawn_by_position_and_shares_where_there_are_none(tmp_path: Path) -> None:
    beside = {"decode": [decode(32, 8192, peer=20.0), decode(32, 128, peer=3.0)], "prefill": []}
    prompt = {"length": 8, "matrix_share": 0.4, "speed_ups": {}}
    alone = {"decode": [decode(1, 128)], "prefill": [prompt]}

    [panel] = plots.ratio_panels(beside)
    shares = plots.ratio_panels(alone)

    assert [panel.lines["peer"](row) for row in panel.rows] == [3.0, 20.0]
    assert [p.lines["engine"](p.rows[0]) for p in shares] == [0.7, 0.4]
    for name, panels in (("a.png", [panel]), ("b.svg", shares)):
        plots.plot(panels, plots.caption({"model": MODEL, "machine": MACHINE}), tmp_path / name)
        assert (tmp_path / name).stat().st_size > 5000


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--plot", "out.txt"], "must end in .png or .svg"),
        (["--plot", "out.png", "--neighbours"], "nothing else"),
        (["--dtype", "int3"], "none of auto, float32, bfloat16 and int8"),
    ],
)
def test_what_cannot_be_drawn_or_measured_is_refused_before_any_work(
    options: list[str], reason: str
) -> None:
    result = CliRunner().invoke(app, ["bench", *options])
    assert result.exit_code == 2
    assert reason in " ".join(result.output.split())
