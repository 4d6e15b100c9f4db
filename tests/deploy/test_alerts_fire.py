"""Every alert is raised, in a real Prometheus, by breaking a real server the way it warns of.

The rules are the shipped ones with their times shortened, since nobody waits a quarter of an hour.
Run with `-m slow`, where Prometheus is installed.
"""

import contextlib
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from tests.deploy.prometheus_server import Prometheus, wait_until
from tests.e2e.server_process import ServerProcess

ALERTS = Path(__file__).parents[2] / "deploy" / "helm" / "dijiang" / "files" / "alerts.yaml"
NAMES = {rule["alert"] for rule in yaml.safe_load(ALERTS.read_text("utf-8"))["groups"][0]["rules"]}
SHORTER = {"DijiangSlowFirstToken": ("> 10", "> 0.5")}
"""Thresholds that are times."""

TO_FIRE_SECONDS = 60

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(180),
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed"),
]


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    """The shipped rules, with windows of ten seconds and nothing to wait out."""
    groups = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))
    for rule in groups["groups"][0]["rules"]:
        rule["for"] = "0s"
        rule["expr"] = re.sub(r"\[\d+m\]", "[10s]", rule["expr"])
        if rule["alert"] in SHORTER:
            before, after = SHORTER[rule["alert"]]
            assert before in rule["expr"]
            rule["expr"] = rule["expr"].replace(before, after)
    path = tmp_path / "alerts.yaml"
    path.write_text(yaml.safe_dump(groups), encoding="utf-8")
    return path


@pytest.fixture
def poisoned_model(make_tiny_model: Callable[..., Path]) -> Path:
    """A model whose state overflows at the letter "z": finite weights, as far as a loader sees."""
    folder = make_tiny_model()
    weights = load_file(folder / "model.safetensors")
    token = ord("z") - ord("!")  # A byte-level vocabulary begins with the printable bytes.
    weights["embed_tokens.weight"][token + 2] = torch.finfo(torch.float32).max
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@contextlib.contextmanager
def watched(model: Path, rules: Path, *flags: str) -> Iterator[tuple[ServerProcess, Prometheus]]:
    """A server under a Prometheus that has scraped it and raises no alert."""
    with ServerProcess(model, "--num-threads", "1", *flags) as server:
        url = server.wait_ready()
        with Prometheus(url, rules, rules.parent) as prometheus:
            wait_until(lambda: len(prometheus.ask("dijiang_engine_ready == 1")) == 1, 20)
            wait_until(lambda: not prometheus.firing(), 20)
            yield server, prometheus


def complete(server: ServerProcess, prompt: str = "the", max_tokens: int = 1) -> int:
    """The status of one completion; 0 where the connection broke."""
    body = {"prompt": prompt, "max_tokens": max_tokens, "ignore_eos": True}
    with contextlib.suppress(httpx.TransportError):
        url = f"{server.wait_listening()}/v1/completions"
        return httpx.post(url, json=body, timeout=60).status_code
    return 0


@contextlib.contextmanager
def users(number: int, act: Callable[[], object]) -> Iterator[None]:
    """So many users who go on doing something until the `with` block ends."""
    over = threading.Event()

    def use() -> None:
        while not over.is_set():
            act()

    with ThreadPoolExecutor(number) as pool:
        for _ in range(number):
            pool.submit(use)
        try:
            yield
        finally:
            over.set()


def fires(prometheus: Prometheus, *names: str) -> None:
    assert set(names) <= NAMES
    seen: set[str] = set()

    deadline = time.monotonic() + TO_FIRE_SECONDS
    while not set(names) <= seen:
        assert time.monotonic() < deadline, f"only {seen}"
        seen.update(prometheus.firing())
        time.sleep(0.2)


def test_a_server_that_is_gone(tiny_model: Path, rules: Path) -> None:
    with watched(tiny_model, rules) as (server, prometheus):
        server.process.kill()
        fires(prometheus, "DijiangDown", "DijiangReplicaDown")


def test_an_engine_that_dies_again_and_again(tiny_model: Path, rules: Path) -> None:
    def kill(server: ServerProcess) -> None:
        # One that dies while it loads is soon given up.
        if httpx.get(f"{server.wait_listening()}/readyz").status_code == 200:
            time.sleep(0.5)
            server.engine.kill()
        time.sleep(0.1)

    with watched(tiny_model, rules) as (server, prometheus):
        with users(4, lambda: complete(server, max_tokens=2000)), users(1, lambda: kill(server)):
            fires(prometheus, "DijiangEngineRestarts", "DijiangErrors", "DijiangNotReady")


def test_more_requests_than_the_server_has_room_for(tiny_model: Path, rules: Path) -> None:
    room = ("--max-slots", "1", "--max-queued-requests", "12")
    with watched(tiny_model, rules, *room) as (server, prometheus):
        with users(20, lambda: complete(server, max_tokens=100)):
            fires(prometheus, "DijiangRejects", "DijiangQueueGrows", "DijiangSlowFirstToken")


def test_a_model_that_overflows(poisoned_model: Path, rules: Path) -> None:
    with watched(poisoned_model, rules) as (server, prometheus):
        # A counter that starts within the window has not grown in Prometheus's eyes.
        with users(1, lambda: (complete(server, "z"), time.sleep(0.5))):
            fires(prometheus, "DijiangFailedRows")


def test_every_alert_is_among_these() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    fired = set(re.findall(r'"(Dijiang\w+)"', text.split("def fires")[1]))
    assert fired == NAMES
