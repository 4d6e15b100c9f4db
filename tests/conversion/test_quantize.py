"""`dijiang convert --quantize`."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import dijiang_runtime.demo
from dijiang_runtime.errors import DiJiangError
from dijiang_runtime.ops.cpu.library import targets
from server.cli import app

pytestmark = pytest.mark.skipif(not targets(), reason="built without a C++ compiler")
DEMO = Path(dijiang_runtime.demo.__file__).parent


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text("Once upon a time there was a little girl who had a red ball. " * 60)
    return file


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["convert", *map(str, arguments)])
    # The command line shows such errors where it is run as a program.
    error = result.exception if isinstance(result.exception, DiJiangError) else ""
    return result.exit_code, f"{result.output}{error}"


def test_what_it_costs_is_printed_and_kept(tmp_path: Path, text: Path) -> None:
    out = tmp_path / "packed"

    status, shown = run(DEMO, out, "--quantize", "int8", "--data", text)

    assert status == 0, shown
    assert "in float32" in shown and "packed (" in shown
    step = json.loads((out / "provenance.json").read_text())[-1]
    assert step["command"] == "quantize" and step["format"] == "int8"
    assert step["packed_loss"] == pytest.approx(step["float32_loss"], rel=0.02)
    assert step["packed_loss"] != step["float32_loss"]
    assert "needs the folder that it was made from" in (out / "README.md").read_text()
    evaluated = CliRunner().invoke(app, ["eval", str(out), "--data", str(text), "--json"])
    assert json.loads(evaluated.output)["loss"] == pytest.approx(step["packed_loss"], rel=1e-6)


def test_without_text_it_says_how_to_measure(tmp_path: Path) -> None:
    status, shown = run(DEMO, tmp_path / "packed", "--quantize", "bfloat16")
    assert status == 0, shown
    assert "dijiang eval" in shown
    generated = CliRunner().invoke(
        app, ["generate", str(tmp_path / "packed"), "--prompt", "Once", "--max-tokens", "3"]
    )
    assert generated.exit_code == 0, generated.output
    inspected = CliRunner().invoke(app, ["inspect", str(tmp_path / "packed")])
    assert "packed as bfloat16" in " ".join(inspected.output.split())


def test_a_vanilla_parent_is_told_to_be_converted_first(
    parents: dict[str, Path], tmp_path: Path
) -> None:
    status, shown = run(next(iter(parents.values())), tmp_path / "out", "--quantize", "int8")
    assert status == 1
    assert "Convert it and train it first" in " ".join(shown.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--quantize", "int8", "--preset", "official"], "--preset is for conversions"),
        (["--quantize", "int8", "--min-half-life", "2"], "--min-half-life is for conversions"),
        (["--data", "text.txt"], "--data and --max-tokens go with --quantize"),
        (["--quantize", "int3"], "int3"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    tmp_path: Path, arguments: list[str], reason: str
) -> None:
    status, shown = run(DEMO, tmp_path / "out", *arguments)
    assert status == 2
    assert reason in " ".join(shown.split())


def test_a_packed_folder_is_not_packed_again(tmp_path: Path) -> None:
    assert run(DEMO, tmp_path / "once", "--quantize", "int8")[0] == 0
    status, shown = run(tmp_path / "once", tmp_path / "twice", "--quantize", "int8")
    assert status == 1
    assert "packed as int8" in shown
    assert not (tmp_path / "twice").exists()
