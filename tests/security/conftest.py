"""The server under attack: as it is run, and as it is run under `python -O`."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e.server_process import ServerProcess

KEY, OTHER_KEY = "canary-key-of-a-client", "canary-key-of-another"
MODEL_FOLDER = "canary-folder"


@pytest.fixture(scope="package", params=["", "1"], ids=["python", "python -O"])
def guarded(
    request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """A server with keys, that logs all it can, over a folder whose path must not be told."""
    folder = tmp_path_factory.mktemp("models") / MODEL_FOLDER
    shutil.copytree(tiny_model, folder)
    env = {"DIJIANG_API_KEYS": f"{KEY},{OTHER_KEY}", "PYTHONOPTIMIZE": request.param}
    flags = ("--served-model-name", "tiny", "--max-slots", "4", "--max-queued-requests", "16")
    flags += ("--log-level", "debug", "--access-log", "--body-timeout-seconds", "1")
    flags += ("--header-timeout-seconds", "1", "--send-timeout-seconds", "1")
    with ServerProcess(folder, *flags, env=env) as server:
        server.wait_ready()
        yield server
        assert server.process.poll() is None
        _, traceback, rest = server.text.partition("Traceback")
        assert not traceback, rest[:4000]


@pytest.fixture
def http(guarded: ServerProcess) -> Iterator[httpx.Client]:
    """A client with a key. After each test the server must answer as before, and hold nothing."""
    headers = {"Authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=guarded.wait_ready(), headers=headers, timeout=30) as client:
        engine = guarded.engine.pid
        before = golden(client)
        yield client
        assert golden(client) == before
        assert guarded.engine.pid == engine


def golden(client: httpx.Client) -> object:
    body = {"prompt": "the quick brown", "max_tokens": 8, "temperature": 0, "logprobs": 1}
    return client.post("/v1/completions", json=body).raise_for_status().json()["choices"]
