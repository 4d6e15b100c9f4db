"""A real server with a real engine and a random model."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from tests.e2e.server_process import ServerProcess

NUM_SLOTS = 8


@pytest.fixture(scope="session")
def server(tiny_model: Path) -> Iterator[ServerProcess]:
    """One server for all tests that leave it as they found it."""
    flags = ("--served-model-name", "tiny", "--max-slots", str(NUM_SLOTS))
    with ServerProcess(tiny_model, *flags) as process:
        process.wait_ready()
        yield process


@pytest.fixture
def http(server: ServerProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.wait_ready(), timeout=30) as client:
        yield client


@pytest.fixture
def sdk(server: ServerProcess) -> Iterator[openai.OpenAI]:
    """The official library, without retries so that it hides nothing."""
    url = server.wait_ready() + "/v1"
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client
