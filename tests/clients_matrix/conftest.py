"""`dijiang serve` with the demo model, for clients that know nothing of it.

The clients live in an environment of their own, which `make clients-test` makes, and which has
nothing of this project; the server runs in the project's.
"""

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "dijiang_runtime" / "demo"
SERVER = ROOT / ".venv" / "bin" / "python"
MODEL = "demo"

if importlib.util.find_spec("litellm") is None:
    collect_ignore_glob = ["test_*.py"]
else:
    # No telemetry, no hub; a client that asks for any other host does so in vain. Set here, because
    # some of them look when they are imported; and only here, because the rest of the suite
    # imports this file too, and must not be sent to a proxy that is not there.
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "LANGCHAIN_TRACING_V2": "false",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "OPENAI_API_KEY": "none",
        "NO_COLOR": "1",
        **dict.fromkeys(
            ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9"
        ),
        **dict.fromkeys(("no_proxy", "NO_PROXY"), "127.0.0.1"),
    }


# The demo model continues text. With a template that knows tools it calls them where it must.
TOOL_TEMPLATE = (
    "{% for tool in tools or [] %}{{ tool.function.name }} <tool_call> {% endfor %}"
    "{% for m in messages %}{{ m.content }}\n{% endfor %}"
)


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The address of a server of a model folder."""
    command = [SERVER, "-m", "server.cli", "serve", folder, "--port", "0"]
    command += ["--served-model-name", MODEL]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "NO_COLOR": "1", "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        log = []
        try:
            for line in process.stderr:
                log.append(line)
                if line.startswith("Ready"):
                    break
            found = re.search(r"Listening on (http://\S+),", "".join(log))
            assert found, "".join(log)
            yield found[1]
        finally:
            process.terminate()
            process.stderr.read()


@pytest.fixture(scope="session")
def url() -> Iterator[str]:
    """The address of a running server."""
    with serving(DEMO) as url:
        yield url


@pytest.fixture(scope="session")
def tools_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base URL of one whose model knows tools."""
    folder = tmp_path_factory.mktemp("caller") / MODEL
    shutil.copytree(DEMO, folder)
    (folder / "chat_template.jinja").write_text(TOOL_TEMPLATE)
    with serving(folder) as url:
        yield f"{url}/v1"


@pytest.fixture(scope="session")
def base_url(url: str) -> str:
    return f"{url}/v1"


@pytest.fixture
def run() -> Callable[..., str]:
    """Run a command to its end, and return what it printed."""

    def run(*command: Any, **options: Any) -> str:
        done = subprocess.run(
            [str(word) for word in command], capture_output=True, text=True, timeout=200, **options
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done.stdout

    return run
