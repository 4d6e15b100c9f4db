"""The `dijiang` command: what it costs to ask, what it says when it cannot, what it runs."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer
from typer.testing import CliRunner

from dijiang_runtime.config import EngineConfig
from dijiang_runtime.engine.engine import Engine
from dijiang_runtime.models.loader import load_model
from dijiang_runtime.request import SamplingParams
from server import cli
from server.commands.common import demo_model_folder
from server.config import ServerConfig, is_option
from tests.small_models import FAMILIES

COMMANDS = sorted(typer.main.get_command(cli.app).commands)  # type: ignore[attr-defined]


def dijiang(*args: str, stdin: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "server.cli", *args],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, **environ},
    )


def invoke(*args: str, stdin: str = "") -> str:
    """Run the command in this process and return what it prints; it must succeed."""
    result = CliRunner().invoke(cli.app, [str(arg) for arg in args], input=stdin)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_help_lists_every_command() -> None:
    shown = dijiang("--help").stdout
    for name in COMMANDS:
        assert f"\n  {name} " in shown


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_shows_examples_that_it_understands(name: str) -> None:
    shown = invoke(name, "--help")
    _, examples = shown.split("Example", 1)
    assert f"dijiang {name}" in examples


@pytest.mark.parametrize("args", [["--help"], ["chat", "--help"], ["serve", "--help"]])
def test_help_loads_nothing_heavy(args: list[str]) -> None:
    script = (
        "import sys; sys.argv = ['dijiang', *sys.argv[1:]]\n"
        "from server.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'numpy', 'fastapi', 'httpx', 'prompt_toolkit'}\n"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, *args], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("args", [["--help"], ["chat", "--help"]])
def test_help_answers_at_once(args: list[str]) -> None:
    # Processor time, and the best of five: the machine may be busy with something else.
    seconds = []
    for _ in range(5):
        before = os.times()
        assert dijiang(*args).returncode == 0
        after = os.times()
        user = after.children_user - before.children_user
        seconds.append(user + after.children_system - before.children_system)
    assert min(seconds) < 0.5


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["generate", "no-such-folder", "--prompt", "x"], "no model folder no-such-folder"),
        (["inspect", "no-such-folder"], "no model folder no-such-folder"),
        (["serve", "no-such-folder"], "no model folder no-such-folder"),
        (["bench", "--shape", "pythia-1t"], "pythia-1t"),
        (["convert", "no-such-folder", "out"], "no-such-folder"),
        (["eval", "no-such-folder", "--data", "no-such-file"], "no-such-f"),
        (["serve", "--host", "0.0.0.0"], "API keys"),
    ],
)
def test_a_failure_is_one_line_and_exit_code_1(args: list[str], said: str) -> None:
    result = dijiang(*args)
    assert (result.returncode, result.stdout) == (1, ""), result.stderr
    assert result.stderr.startswith("dijiang: ")
    assert result.stderr.count("\n") == 1
    assert said in result.stderr


@pytest.mark.parametrize(
    "args",
    [["no-such-command"], ["serve", "--no-such-flag"], ["serve", "--port", "99999"], ["convert"]],
)
def test_a_usage_error_is_exit_code_2(args: list[str]) -> None:
    result = dijiang(*args)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr


def test_a_defect_is_one_line_unless_the_traceback_is_asked_for() -> None:
    script = (
        "from server import cli\n"
        "@cli.app.command()\n"
        "def broken() -> None: raise KeyError('oh')\n"
        "import sys; sys.argv = ['dijiang', 'broken']; cli.main()\n"
    )

    def run(**environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            env={**os.environ, **environ},
        )

    assert run().stderr == "dijiang: internal error: KeyError: 'oh'\n"
    assert run().returncode == 1
    assert "Traceback" in run(DIJIANG_TRACEBACK="1").stderr


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[ServerConfig, EngineConfig]]:
    """Run `dijiang serve` up to where the server would start, and return what it would run."""
    for variable in [name for name in os.environ if name.startswith("DIJIANG_")]:
        monkeypatch.delenv(variable)

    def serve(*args: str) -> tuple[ServerConfig, EngineConfig]:
        configs: list[tuple[ServerConfig, EngineConfig]] = []

        def run_server(config: ServerConfig, engine_config: EngineConfig) -> int:
            configs.append((config, engine_config))
            return 0

        monkeypatch.setattr("server.run.run_server", run_server)
        invoke("serve", *args)
        return configs[0]

    return serve


def test_serving_nothing_named_serves_the_demo_model(served: Any) -> None:
    config, engine_config = served()
    assert config.model == engine_config.model == demo_model_folder()
    assert config.model_names == ("dijiang-demo",)
    assert (config.host, config.port) == ("127.0.0.1", 8000)


def test_serving_a_folder_names_the_model_after_it(served: Any, tiny_model: Path) -> None:
    config, engine_config = served(str(tiny_model))
    assert config.model == engine_config.model == tiny_model
    assert config.model_names == (tiny_model.name,)


def test_every_option_is_a_flag_and_a_variable(
    served: Any, monkeypatch: pytest.MonkeyPatch, tiny_model: Path
) -> None:
    def other(field: msgspec.structs.FieldInfo) -> str:
        """A value that is valid and not the default."""
        special = {
            "served_model_name": "other",
            "host": "::1",
            "port": "7",
            "api_workers": "7",
            "device": "cpu",
            "dtype": "bfloat16",
            "log_level": "debug",
            "tool_call_parser": "hermes",
            "api_key_file": str(key_file),
            "config": str(config_file),
        }
        if isinstance(field.default, bool):
            return str(not field.default).lower()
        return special.get(field.name, "4321")

    key_file = tiny_model.parent / "keys"
    key_file.write_text("a-key\n")
    config_file = tiny_model.parent / "nothing.yaml"
    config_file.write_text("")
    fields = [
        (i, field)
        for i, config_type in enumerate((ServerConfig, EngineConfig))
        for field in msgspec.structs.fields(config_type)
        if field.name != "model" and is_option(field.name)
    ]
    flags: list[str] = []
    for _, field in fields:
        flag = "--" + field.name.replace("_", "-")
        if isinstance(field.default, bool):
            flags.append("--no-" + flag[2:] if field.default else flag)
        else:
            flags += [flag, other(field)]
    # A field without a description would silently be no flag; `serve` would then refuse it.
    default = served(str(tiny_model))
    by_flag = served(str(tiny_model), *flags)
    for _, field in fields:
        monkeypatch.setenv("DIJIANG_" + field.name.upper(), other(field))
    by_variable = served(str(tiny_model))
    assert by_flag == by_variable
    for _, field in fields:
        monkeypatch.delenv("DIJIANG_" + field.name.upper())
    config_file.write_text(
        "".join(
            f"{f.name.replace('_', '-')}: {other(f)}\n" for _, f in fields if f.name != "config"
        )
    )
    assert served(str(tiny_model), "--config", str(config_file)) == by_flag
    for i, field in fields:
        assert getattr(by_flag[i], field.name) != getattr(default[i], field.name), field.name


def test_a_flag_wins_over_its_variable(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIJIANG_PORT", "1111")
    monkeypatch.setenv("DIJIANG_MAX_SLOTS", "7")
    config, engine_config = served("--port", "2222")
    assert config.port == 2222
    assert engine_config.max_slots == 7


def test_generate_prints_the_text_that_the_engine_makes(tiny_model: Path) -> None:
    printed = invoke(
        "generate", tiny_model, "--prompt", "the dog", "--max-tokens", "12", "--seed", "3"
    )
    engine = Engine.from_config(EngineConfig(model=tiny_model, max_slots=1))
    [expected] = engine.generate(["the dog"], SamplingParams(max_tokens=12, seed=3))
    assert printed == expected.text.rstrip("\n") + "\n"


def test_generate_reads_the_prompt_from_a_pipe(tiny_model: Path) -> None:
    options = ["--max-tokens", "8", "--temperature", "0"]
    assert invoke("generate", tiny_model, *options, stdin="the dog") == invoke(
        "generate", tiny_model, "--prompt", "the dog", *options
    )


def test_generate_numbers_seeds_and_reports_every_answer(tiny_model: Path) -> None:
    def run(*args: str) -> dict[str, Any]:
        command = ["generate", tiny_model, "--prompt", "the", "--max-tokens", "9", "--json"]
        report: dict[str, Any] = json.loads(invoke(*command, *args))
        return report

    report = run("--n", "3", "--seed", "5")
    assert [choice["index"] for choice in report["choices"]] == [0, 1, 2]
    assert [choice["text"] for choice in report["choices"]] == [
        run("--seed", str(seed))["choices"][0]["text"] for seed in (5, 6, 7)
    ]
    assert report["prompt"] == "the"
    for choice in report["choices"]:
        assert choice["num_output_tokens"] == 9
        assert choice["finish_reason"] == "length"


def test_generate_shows_answers_one_after_the_other(tiny_model: Path) -> None:
    command = ["generate", tiny_model, "--prompt", "the", "--n", "2", "--temperature", "0"]
    first, second = invoke(*command, "--max-tokens", "6").split("---\n")
    assert first == second


def test_generate_tells_a_failure_inside_the_engine_without_a_traceback(tiny_model: Path) -> None:
    script = (
        "import sys; from dijiang_runtime.engine.model_runner import ModelRunner\n"
        "def fails(self, items): raise RuntimeError('oh')\n"
        "from dijiang_runtime.engine.engine import Engine\n"
        "warm_up = Engine.warm_up\n"
        "def then_fail(self): warm_up(self); ModelRunner._run_batch = fails\n"
        "Engine.warm_up = then_fail\n"
        "from server.cli import main; main()"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, "generate", str(tiny_model), "--prompt", "x"],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    lines = result.stderr.splitlines()
    assert len(lines) == 2 and all(line.startswith("dijiang: ") for line in lines)
    assert "failed" in lines[1]


def test_generate_names_a_parameter_that_is_out_of_range(tiny_model: Path) -> None:
    result = dijiang("generate", str(tiny_model), "--prompt", "x", "--temperature", "9")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "dijiang: temperature must be between 0 and 2.\n"


def test_inspect_counts_what_is_there(tiny_model: Path) -> None:
    facts = json.loads(invoke("inspect", tiny_model, "--json"))
    model = load_model(tiny_model)
    config = model.config
    assert facts["num_parameters"] == sum(p.numel() for p in model.parameters())
    # 2 layers of 4 heads: a state of 32 features by 16 values and their mass, in 4 bytes each.
    assert facts["state_bytes"] == 2 * 4 * 32 * (16 + 1) * 4
    # Keys and values, 2 bytes each, for every layer and head.
    kv_bytes = config.num_layers * config.num_heads * config.head_dim * 2 * 2
    assert facts["kv_cache_bytes"]["1000000"] == 1_000_000 * kv_bytes
    even = facts["break_even_tokens"]
    assert (even - 1) * kv_bytes < facts["state_bytes"] <= even * kv_bytes


def test_inspect_counts_the_window_as_state(make_tiny_model: Callable[..., Path]) -> None:
    folder = make_tiny_model(**FAMILIES["window"])
    facts = json.loads(invoke("inspect", folder, "--json"))
    assert (facts["window"], facts["sinks"]) == (64, 4)
    # As above, and keys and values of the window, the sinks and one more.
    assert facts["state_bytes"] == 2 * 4 * (32 * (16 + 1) + 2 * (64 + 4 + 1) * 16) * 4
    assert "last 64 tokens" in invoke("inspect", folder)


def test_inspect_shows_a_table(tiny_model: Path) -> None:
    shown = invoke("inspect", tiny_model)
    assert "Parameters" in shown
    assert "1,000,000" in shown
