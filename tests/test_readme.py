"""What the pages tell a reader to type, open or read exists."""

import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner

from server import cli
from server.protocol.completions import CompletionRequest

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
COMMANDS = set(typer.main.get_command(cli.app).commands)  # type: ignore[attr-defined]
TARGETS = set(re.findall(r"^([a-z-]+):.*## ", MAKEFILE, re.MULTILINE))

by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def shell_lines(page: Path) -> list[str]:
    """The commands in a page's shell blocks, continued lines joined, comments left out."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"```(?:bash|console|sh)\n(.*?)```", text, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.strip().removeprefix("$ ") for line in lines if line.strip()]


def flags_of(command: str) -> set[str]:
    shown = CliRunner().invoke(cli.app, [command, "--help"], env={"COLUMNS": "200"}).output
    return set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", shown))


def dijiang_commands(page: Path) -> list[list[str]]:
    """The arguments of every `dijiang …` in a page's shell blocks, pipes taken apart."""
    words = [
        shlex.split(part, comments=True) for line in shell_lines(page) for part in line.split("|")
    ]
    return [word[1:] for word in words if word[:1] == ["dijiang"]]


@by_page
def test_commands_and_their_flags_exist(page: Path) -> None:
    for command, *args in dijiang_commands(page):
        assert command in COMMANDS, f"dijiang {command}"
        used = {arg.split("=")[0] for arg in args if re.match(r"--?[a-z]", arg)}
        assert used <= flags_of(command), f"dijiang {command}: {used - flags_of(command)}"


@by_page
def test_make_targets_exist(page: Path) -> None:
    used = {match for line in shell_lines(page) for match in re.findall(r"^make ([a-z-]+)", line)}
    assert used <= TARGETS


@by_page
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    broken = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert broken == []


def test_the_readme_lists_every_command() -> None:
    assert set(re.findall(r"^\| `dijiang ([a-z-]+)` \|", README, re.MULTILINE)) == COMMANDS


def test_the_readme_names_only_options_that_serve_has() -> None:
    section = README.split("## Options")[1].split("\n## ")[0]
    used = set(re.findall(r"`(--[a-z-]+)`", section))
    assert len(used) > 5
    assert used <= flags_of("serve")


def test_the_paths_in_the_readme_exist() -> None:
    section = README.split("## Reading the code")[1].split("\n## ")[0]
    files = re.findall(r"`([\w/]+\.py)`", section)
    assert len(files) == 5
    for file in files:
        assert (ROOT / file).is_file(), file
    parent = ""
    for indent, name in re.findall(r"^( *)([a-z_0-9]+/) ", section, re.MULTILINE):
        parent = name if not indent else parent
        assert (ROOT / (parent if not indent else parent + name)).is_dir(), name


def test_the_first_screen_is_enough_to_begin() -> None:
    first_screen = "\n".join(README.splitlines()[:25])
    for command in ("make serve", "make test", "curl -N"):
        assert command in first_screen


def test_the_readmes_request_is_one_that_the_server_accepts() -> None:
    [line] = [line for line in shell_lines(ROOT / "README.md") if line.startswith("curl")]
    words = shlex.split(line)
    body = json.loads(words[words.index("-d") + 1])
    request = CompletionRequest.model_validate(body)
    assert request.stream is True
    assert set(body) <= set(CompletionRequest.model_fields)


def test_ci_runs_the_readmes_test_command() -> None:
    assert (ROOT / ".ci" / "run").read_text(encoding="utf-8").rstrip().endswith("exec make test")


def test_pre_commit_runs_what_make_lint_runs() -> None:
    recipe = MAKEFILE.split("\nlint:")[1].split("\n\n")[0]
    linted = re.findall(r"^\t\$\(BIN\)/(.+)$", recipe, re.MULTILINE)
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    hooks = [hook["entry"] for repo in config["repos"] for hook in repo["hooks"]]
    assert hooks == [f".venv/bin/{command}" for command in linted]


def test_every_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    wanted = [*project["dependencies"], *(name for extra in extras for name in extra)]
    names = {re.split(r"[\[=<>;\s]", name)[0].lower().replace("_", "-") for name in wanted}
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins)
    pinned = {pin.split("==")[0].lower().replace("_", "-") for pin in pins}
    assert names - {"dijiang-serving"} <= pinned
    assert "torch==2.13.0" in pins
