"""`dijiang loadtest`, as a user runs it."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from server import cli
from tests.clients.loadtest.conftest import Fake

COMMAND = [sys.executable, "-m", "server.cli", "loadtest"]
SHORT = ("--warmup", "0", "--num-requests", "4")


def loadtest(*args: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *args],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environ},
    )


def test_a_load_test_writes_everything_that_is_asked_for(quick: Fake, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.json", "a.html", "plots")]
    result = loadtest(
        *("--base-url", quick.url, "--rates", "50,100", *SHORT, "--slo", "ttft=2s"),
        *("--json", str(files[0]), "--html", str(files[1]), "--plots", str(files[2])),
    )
    assert result.returncode == 0, result.stderr
    assert "goodput" in result.stdout
    assert result.stderr == ""
    assert all(file.exists() for file in files)
    runs = json.loads(files[0].read_text())["servers"][0]["runs"]
    assert [run["load"]["value"] for run in runs] == [50, 100]
    compared = loadtest("compare", str(files[0]), str(files[0]))
    assert compared.returncode == 0, compared.stderr
    assert "1.00x" in compared.stdout


def test_two_servers_are_put_side_by_side(quick: Fake) -> None:
    result = loadtest("--base-url", quick.url, "--against", quick.url, *SHORT)
    assert result.returncode == 0, result.stderr
    assert "B / A" in result.stdout
    assert quick.counts()["num_requests"] == 8


def test_json_on_standard_output_is_all_there_is(quick: Fake) -> None:
    result = loadtest("--base-url", quick.url, *SHORT, "--json", "-")
    assert json.loads(result.stdout)["format"] == "dijiang-loadtest/1"


@pytest.mark.parametrize(("allowed", "exit_code"), [("0.4", 1), ("0.5", 0)])
def test_too_many_errors_are_exit_code_1(
    start_fake: Callable[..., Fake], allowed: str, exit_code: int
) -> None:
    fake = start_fake(ttft_seconds=[0.002], statuses=[200, 429])
    result = loadtest("--base-url", fake.url, "--rate", "50", *SHORT, "--max-error-rate", allowed)
    assert result.returncode == exit_code
    assert "2 x http_429" in result.stdout
    assert ("50.0% of the requests failed" in result.stderr) == bool(exit_code)


@pytest.mark.parametrize(
    "args",
    [
        ["--rate", "1", "--concurrency", "2"],
        ["--rates", "1,x"],
        ["--rate", "0"],
        ["--concurrency", "1.5"],
        ["--arrivals", "sometimes"],
        ["--arrivals", "ramp:1", "--rate", "2", "--num-requests", "5"],
        ["--prompt-tokens", "long"],
        ["--workload", "everything"],
        ["--slo", "ttft=fast"],
        ["--body", "[1]"],
        ["--body", "{"],
        ["--endpoint", "embeddings"],
        ["--text", "no-such-file"],
        ["--json", "no-such-folder/report.json"],
        ["--no-such-flag"],
        ["compare", "a.json"],
    ],
)
def test_a_usage_error_is_exit_code_2(args: list[str]) -> None:
    result = CliRunner().invoke(cli.app, ["loadtest", *args])
    assert (result.exit_code, result.stdout) == (2, ""), result.stderr


def test_a_server_that_is_not_there_is_one_line() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        result = loadtest("--base-url", f"http://127.0.0.1:{unused.getsockname()[1]}")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("dijiang: No server answers")
    assert result.stderr.count("\n") == 1


def test_ctrl_c_ends_it_with_a_report_on_what_was_measured(
    start_fake: Callable[..., Fake], tmp_path: Path
) -> None:
    fake = start_fake(ttft_seconds=[0.05, 30.0], itl_seconds=[0.01])
    file = tmp_path / "report.json"
    args = ["--base-url", fake.url, "--concurrency", "2", "--warmup", "0", "--json", str(file)]
    process = subprocess.Popen([*COMMAND, *args], stdout=subprocess.PIPE, text=True)
    # One request ends soon and the other two would take half a minute.
    fake.counts(num_requests=3)
    process.send_signal(signal.SIGINT)
    shown, _ = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "stopped early" in shown
    report = json.loads(file.read_text())
    assert report["is_interrupted"] is True
    assert report["servers"][0]["runs"][0]["requests"]["completed"] == 1


def test_the_key_comes_from_a_file_and_a_second_server_does_not_get_it(
    quick: Fake, start_fake: Callable[..., Fake], tmp_path: Path
) -> None:
    other = start_fake(ttft_seconds=[0.001], num_tokens=2)
    key_file = tmp_path / "key"
    key_file.write_text("a-secret-key\n")
    args = ("--base-url", quick.url, "--against", other.url, "--api-key-file", str(key_file))
    result = loadtest(*args, *SHORT)
    assert result.returncode == 0, result.stderr
    assert "a-secret-key" not in result.stdout + result.stderr
    assert quick.counts()["keys"] == ["Bearer a-secret-key"]
    assert other.counts()["keys"] == []


def test_help_shows_examples_and_both_commands() -> None:
    shown = CliRunner().invoke(cli.app, ["loadtest", "--help"]).stdout
    assert "dijiang loadtest --rates 1,2,4,8" in shown
    assert "compare" in shown
