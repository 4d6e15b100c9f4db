"""The playground's scripts, run by Node: their syntax, and their tests beside this file."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from server.playground.page import join_scripts

ROOT = Path(__file__).parents[2]
MIN_VERSION = 18


def find_node() -> str | None:
    """A Node that is new enough to have a test runner."""
    if (node := shutil.which("node")) is None:
        return None
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=False)
    match = re.match(r"v(\d+)", version.stdout)
    return node if match and int(match[1]) >= MIN_VERSION else None


@pytest.fixture(scope="module")
def node() -> str:
    if (found := find_node()) is None:
        pytest.skip(f"there is no Node {MIN_VERSION} or newer")
    return found


def test_the_joined_script_is_one_valid_module(node: str, tmp_path: Path) -> None:
    """Two modules that use one name would only clash when they are joined."""
    script = tmp_path / "page.mjs"
    script.write_text(join_scripts(), encoding="utf-8")
    result = subprocess.run([node, "--check", str(script)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_the_tests_of_the_scripts_pass(node: str) -> None:
    tests = sorted(Path(__file__).parent.glob("*.test.mjs"))
    assert len(tests) >= 4
    command = [node, "--test", "--test-reporter=tap", *map(str, tests)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert result.returncode == 0, result.stdout
    counts = dict(re.findall(r"^# (tests|pass) (\d+)$", result.stdout, re.MULTILINE))
    assert counts["tests"] == counts["pass"] != "0"
