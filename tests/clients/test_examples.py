"""The examples in the pages, run as they stand against a server with the demo model."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from server.commands.common import DEMO_MODEL_NAME, demo_model_folder
from tests.e2e.server_process import ServerProcess
from tests.server.test_tools import HERMES

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/api.md", "docs/clients.md")
SERVER = "http://127.0.0.1:8000"


def blocks(language: str) -> list[tuple[str, str]]:
    """The code blocks in a language, by the page and number that a failure should name."""
    found = []
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        codes = re.findall(rf"```(?:{language})\n(.*?)```", text, re.DOTALL)
        found += [(f"{page}-{number}", code) for number, code in enumerate(codes, 1)]
    return found


def by_name(found: list[tuple[str, str]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("code", [c for _, c in found], ids=[name for name, _ in found])


def shell_commands(beginning: str) -> list[tuple[str, str]]:
    """Commands in shell blocks that talk to a server, continued lines joined."""
    return [
        (f"{name}-{number}", line.removeprefix("$ "))
        for name, code in blocks("bash|console")
        for number, line in enumerate(code.replace("\\\n", " ").splitlines(), 1)
        if line.removeprefix("$ ").startswith(beginning)
    ]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    flags = ("--served-model-name", DEMO_MODEL_NAME, "--max-slots", "4")
    with ServerProcess(demo_model_folder(), *flags) as process:
        yield process.wait_ready()


@pytest.fixture(scope="module")
def url_with_tools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The demo model with a chat template that knows tools, which its own does not."""
    folder = tmp_path_factory.mktemp("tools") / "model"
    shutil.copytree(demo_model_folder(), folder)
    (folder / "chat_template.jinja").write_text(HERMES, encoding="utf-8")
    with ServerProcess(folder, "--served-model-name", DEMO_MODEL_NAME) as process:
        yield process.wait_ready()


def run(command: list[str], **options: str) -> str:
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=60, cwd=ROOT, **options
    )  # type: ignore[call-overload]
    assert result.returncode == 0, result.stderr
    return str(result.stdout)


def test_the_pages_have_examples() -> None:
    assert len(blocks("python")) >= 6
    assert len(shell_commands("curl")) >= 3 and len(shell_commands("echo")) >= 2


@by_name(blocks("python"))
def test_python_examples_write_an_answer(
    url: str, code: str, request: pytest.FixtureRequest
) -> None:
    if "langchain" in code and find_spec("langchain_openai") is None:
        pytest.skip("there is no langchain-openai")
    assert SERVER in code
    if "tools=" in code:
        url = request.getfixturevalue("url_with_tools")
    written = run([sys.executable, "-c", code.replace(SERVER, url)])
    assert len(written.split()) > 5


@by_name(shell_commands("curl"))
def test_curl_examples_get_an_answer(url: str, code: str) -> None:
    if shutil.which("curl") is None:
        pytest.skip("there is no curl")
    shown = run(["bash", "-c", code.replace(SERVER, url)])
    if '"stream": true' in code:
        assert shown.count("data: ") > 2 and shown.rstrip().endswith("data: [DONE]")
    else:
        assert json.loads(shown)["choices"][0]["text"]


@by_name(shell_commands("echo"))
def test_pipes_print_an_answer(url: str, code: str) -> None:
    program = f"{sys.executable} -m server.cli chat --base-url {url}"
    assert len(run(["bash", "-c", code.replace("dijiang chat", program)]).split()) > 5


def test_the_pictures_are_there() -> None:
    for name in ("playground.png", "loadtest.png"):
        assert (ROOT / "docs" / "images" / name).read_bytes().startswith(b"\x89PNG")
        pages = [page.read_text(encoding="utf-8") for page in (ROOT / "docs").glob("*.md")]
        assert any(f"images/{name}" in page for page in pages)
