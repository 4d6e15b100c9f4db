"""A real Prometheus scrapes a loaded server and answers every query of the dashboard.

Run with `-m slow`, where Prometheus is installed.
"""

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from tests.e2e.server_process import ServerProcess

CHART_FILES = Path(__file__).parents[2] / "deploy" / "helm" / "dijiang" / "files"
DASHBOARD = json.loads((CHART_FILES / "dashboard.json").read_text(encoding="utf-8"))
QUERIES = {
    f"{panel['title']}, {target['legendFormat']}": target["expr"]
    for panel in DASHBOARD["panels"]
    for target in panel.get("targets", [])
}
VARIABLES = {"$job": "dijiang", "$__rate_interval": "1m"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed"),
]


@pytest.fixture(scope="module")
def prometheus(
    tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx.Client]:
    """A Prometheus that has scraped a server with the shipped alerts, under some load."""
    folder = tmp_path_factory.mktemp("prometheus")
    with ServerProcess(tiny_model, "--served-model-name", "tiny") as server:
        url = server.wait_ready()
        port = _free_port()
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(CHART_FILES / "alerts.yaml")],
            "scrape_configs": [
                {
                    "job_name": "dijiang",
                    "static_configs": [{"targets": [url.removeprefix("http://")]}],
                }
            ],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder}/prometheus.yml",
                f"--storage.tsdb.path={folder}/data",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stderr=subprocess.DEVNULL,
        )
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
                _load(url, until=client)
                yield client
        finally:
            process.terminate()
            process.wait()


def _load(url: str, *, until: httpx.Client) -> None:
    """Ask the server until its tokens have a rate in Prometheus."""
    body = {"prompt": "the", "max_tokens": 20, "ignore_eos": True}
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        httpx.post(f"{url}/v1/completions", json=body, timeout=30)
        time.sleep(0.2)
        try:
            if len(_ask(until, "rate(dijiang_generation_tokens_total[1m]) > 1")) == 1:
                return
        except httpx.TransportError:
            continue
    raise AssertionError("Prometheus never scraped the server")


def _ask(client: httpx.Client, query: str) -> list[dict]:
    for variable, value in VARIABLES.items():
        query = query.replace(variable, value)
    answer = client.get("/api/v1/query", params={"query": query}).json()
    assert answer["status"] == "success", answer
    result: list[dict] = answer["data"]["result"]
    return result


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


NEEDS_TROUBLE = {"Refused for lack of room"}
"""Panels whose series begin with the first refusal."""


@pytest.mark.parametrize("where", QUERIES)
def test_every_query_of_the_dashboard_is_answered(where: str, prometheus: httpx.Client) -> None:
    result = _ask(prometheus, QUERIES[where])
    if where.partition(",")[0] not in NEEDS_TROUBLE:
        # NaN is what a share or a quantile of nothing is.
        assert any(series["value"][1] != "NaN" for series in result), result


def test_no_alert_is_raised_by_a_server_that_is_well(prometheus: httpx.Client) -> None:
    rules = prometheus.get("/api/v1/rules").json()["data"]["groups"][0]["rules"]
    assert len(rules) == 9
    assert [rule["name"] for rule in rules if rule["health"] != "ok"] == []
    assert [rule["name"] for rule in rules if rule["state"] != "inactive"] == []
