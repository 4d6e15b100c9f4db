"""The server and the bench on a GPU, as a user starts them."""

import json
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from server import cli
from tests.e2e.server_process import ServerProcess

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("flags", [(), ("--no-cuda-graphs",)], ids=str)
def test_a_server_answers_from_the_gpu(tiny_model: Path, flags: tuple[str, ...]) -> None:
    body = {"prompt": "the quick brown", "max_tokens": 8, "seed": 1, "logprobs": 2}
    with ServerProcess(tiny_model, "--device", "cuda", "--max-slots", "8", *flags) as process:
        with httpx.Client(base_url=process.wait_ready(), timeout=60) as http:
            answers = [http.post("/v1/completions", json=body).json() for _ in range(3)]
        assert "cuda" in process.text
        assert ("recorded decode steps" in process.text) == (not flags)
    assert all(answer["choices"] == answers[0]["choices"] for answer in answers)
    assert answers[0]["usage"]["completion_tokens"] > 0


def test_the_bench_measures_on_the_gpu(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    options = ["--device=cuda", "--rounds=2", "--ratios", "--point=1@128", "--point=32@128"]
    result = CliRunner().invoke(cli.app, ["bench", *options, "--prompt=512", f"--json={file}"])
    assert result.exit_code == 0, result.output
    report = json.loads(file.read_text())
    assert report["machine"]["gpu"]
    assert report["model"]["dtype"] == "bfloat16"
    assert all(0 < row["roofline_share"] < 1.5 for row in report["decode"])
