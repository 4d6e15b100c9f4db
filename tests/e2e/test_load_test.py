"""The load tester against a real server."""

import json
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.e2e.server_process import ServerProcess


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_a_load_test_counts_what_the_server_counts(
    server: ServerProcess, tmp_path: Path, endpoint: str
) -> None:
    file = tmp_path / "report.json"
    before = counter(server, "dijiang_generation_tokens_total")
    command = [sys.executable, "-m", "server.cli", "loadtest", "--base-url", server.wait_ready()]
    command += ["--endpoint", endpoint, "--concurrency", "4", "--num-requests", "12"]
    command += ["--turns", "2", "--think-seconds", "0", "--prompt-tokens", "40"]
    command += ["--output-tokens", "uniform:2,9", "--ignore-eos", "--warmup", "0"]
    result = subprocess.run(
        [*command, "--json", str(file)], capture_output=True, text=True, timeout=90
    )
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads(file.read_text())
    [run] = report["servers"][0]["runs"]
    assert run["requests"]["completed"] == 24
    assert run["tokens"]["are_counted"] is True
    num_tokens = run["tokens"]["output"]["mean"] * 24
    # Two requests of one token each measure how many tokens a word makes.
    after = counter(server, "dijiang_generation_tokens_total")
    assert after - before == pytest.approx(num_tokens + 2)


def counter(server: ServerProcess, name: str) -> float:
    lines = httpx.get(f"{server.wait_ready()}/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))
