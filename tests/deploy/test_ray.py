"""The Ray Serve application with two replicas on this machine: `make ray-test`.

Ray is in an environment of its own: it is large, and nothing else needs it.
"""

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from tests.deploy.prometheus_server import wait_until
from tests.deploy.proxies import free_port

pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "deploy" / "ray" / "serve.yaml"
START_SECONDS = 150
SESSIONS = [f"s{i}" for i in range(12)]


def read_config() -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    return config


@pytest.fixture(scope="module")
def ray_serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`serve run` with the configuration as it is, but for the port. Its URL."""
    folder = tmp_path_factory.mktemp("ray")
    config = read_config()
    port = config["http_options"]["port"] = free_port()
    path, log = folder / "serve.yaml", folder / "log"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    with log.open("w") as output:
        process = subprocess.Popen(
            [Path(sys.executable).parent / "serve", "run", path],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=output,
            stderr=output,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: both_answer(url), START_SECONDS)
        yield url
    finally:
        process.terminate()
        process.wait(60)


def both_answer(url: str) -> bool:
    """Whether the sessions are spread over two replicas, which have not seen the same work."""
    with contextlib.suppress(httpx.HTTPError, AssertionError, ValueError):
        with httpx.Client(base_url=url, timeout=60) as client:
            stream(client, SESSIONS[0])
            return len({num_prompt_tokens(client, session) for session in SESSIONS}) == 2
    return False


def stream(client: httpx.Client, session: str, max_tokens: int = 4) -> list[str]:
    """The data of one streamed completion."""
    body = {"prompt": "Once", "max_tokens": max_tokens, "stream": True, "ignore_eos": True}
    headers = {"X-Session-Id": session}
    with client.stream("POST", "/v1/completions", json=body, headers=headers) as response:
        assert response.status_code == 200
        lines = [line for line in response.iter_lines() if line.startswith("data: ")]
    return [line.removeprefix("data: ") for line in lines]


def num_prompt_tokens(client: httpx.Client, session: str) -> int:
    """How many prompt tokens the session's replica has seen."""
    text = client.get("/metrics", headers={"X-Session-Id": session}).text
    [count] = re.findall(r"^vllm:prompt_tokens_total\{[^}]*\} (\S+)", text, re.M)
    return int(float(count))


def replicas() -> list[psutil.Process]:
    return [
        process
        for process in psutil.process_iter(["name", "cmdline"])
        if "ray::ServeReplica:dijiang" in " ".join(process.info["cmdline"] or [])
    ]


def test_a_completion_is_streamed_token_by_token(ray_serve: str) -> None:
    with httpx.Client(base_url=ray_serve, timeout=60) as client:
        *chunks, last = stream(client, "s0", max_tokens=16)
        assert last == "[DONE]"
        texts = [json.loads(chunk)["choices"][0]["text"] for chunk in chunks]
        assert len(texts) > 8
        body = {"prompt": "Once", "max_tokens": 16, "ignore_eos": True}
        whole = client.post("/v1/completions", json=body).json()["choices"][0]["text"]
        assert len("".join(texts)) > 0 and len(whole) > 0


def test_a_session_stays_with_its_replica(ray_serve: str) -> None:
    with httpx.Client(base_url=ray_serve, timeout=60) as client:
        before = {session: num_prompt_tokens(client, session) for session in SESSIONS}
        for _ in range(5):
            stream(client, SESSIONS[0])
        grown = {s: num_prompt_tokens(client, s) - before[s] for s in SESSIONS}
    per_request = grown[SESSIONS[0]] // 5
    assert per_request > 0 and grown[SESSIONS[0]] == 5 * per_request
    # Sessions beside it see the same replica's five requests, the others none.
    assert set(grown.values()) == {0, 5 * per_request}


def test_a_bad_request_is_answered_as_without_ray(ray_serve: str) -> None:
    response = httpx.post(f"{ray_serve}/v1/completions", json={"prompt": "a", "temperature": -1})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "temperature"


def test_a_killed_replica_is_replaced(ray_serve: str) -> None:
    killed, kept = replicas()
    killed.kill()
    with httpx.Client(base_url=ray_serve, timeout=60) as client:

        def answers() -> bool:
            with contextlib.suppress(httpx.HTTPError, AssertionError):
                return all(stream(client, session)[-1] == "[DONE]" for session in SESSIONS)
            return False

        wait_until(answers, 60)
        wait_until(lambda: len(replicas()) == 2, 60)
        assert kept.is_running() and killed.pid not in {process.pid for process in replicas()}
