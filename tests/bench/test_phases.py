"""`dijiang bench --phases` takes steps apart, and what it finds adds up to them."""

import json
from pathlib import Path
from typing import cast

import pytest
from typer.testing import CliRunner

from dijiang_runtime.bench import facts
from dijiang_runtime.bench.phases import PARTS, PhaseOptions, TimedDecoder, measure_phases
from dijiang_runtime.models.compiled import CompiledDecoder, prepare
from dijiang_runtime.models.loader import load_model
from dijiang_runtime.ops.cpu.library import NO_TARGET, PHASES, TARGET_VARIABLE, targets
from server import cli

pytestmark = pytest.mark.skipif(not targets(), reason="built without a C++ compiler")


@pytest.fixture
def model(tiny_model: Path) -> CompiledDecoder:
    return cast(CompiledDecoder, prepare(load_model(tiny_model), "int8"))


def test_the_parts_of_a_step_add_up_to_it(model: CompiledDecoder) -> None:
    options = PhaseOptions(batches=(1, 3), prompt_lengths=(70,), rounds=3, turn_seconds=0.0)
    found = measure_phases(model, options, lambda text: None)

    assert [row.get("batch", row.get("length")) for row in found] == [1, 3, 70]
    for row in found:
        parts = row["parts"]
        assert tuple(parts) == PARTS
        assert all(parts[name] > 0 for name in PARTS)
        # Medians of the parts need not add up to that of the whole, but nearly do.
        assert sum(parts.values()) == pytest.approx(row["seconds"], rel=0.5)


def test_nothing_is_counted_unless_it_is_asked_for(model: CompiledDecoder) -> None:
    timed = TimedDecoder(model)
    assert timed.nanoseconds is None
    timed.start()
    spent = timed.stop()
    assert [spent[name] for name in PHASES] == [0.0] * len(PHASES)
    assert timed.nanoseconds is None


def test_the_command_prints_and_writes_what_it_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(facts.SHAPES, "pythia-70m", (64, 2, 4, 128))
    file = tmp_path / "phases.json"
    options = ["--phases", "--rounds=2", "--threads=1", f"--json={file}"]
    result = CliRunner().invoke(cli.app, ["bench", *options])

    assert result.exit_code == 0, result.output
    assert "products" in result.output and "prompt of" in result.output
    phases = json.loads(file.read_text())["phases"]
    assert [row.get("batch") for row in phases] == [1, 8, 32, None]


def test_a_model_without_compiled_kernels_cannot_be_taken_apart(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TARGET_VARIABLE, NO_TARGET)
    result = CliRunner().invoke(cli.app, ["bench", str(tiny_model), "--phases", "--threads=1"])

    assert result.exit_code == 1
    assert "compiled" in result.output
