"""A real Prometheus scrapes a loaded server and answers every query of the dashboard.

Run with `-m slow`, where Prometheus is installed.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.deploy.prometheus_server import Prometheus, wait_until
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
def prometheus(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that has scraped a server with the shipped alerts, under some load."""
    with ServerProcess(tiny_model, "--served-model-name", "tiny") as server:
        url = server.wait_ready()
        folder = tmp_path_factory.mktemp("prometheus")
        with Prometheus(url, CHART_FILES / "alerts.yaml", folder) as prometheus:
            wait_until(lambda: _has_a_rate_of_tokens(url, prometheus), 60)
            yield prometheus


def _has_a_rate_of_tokens(url: str, prometheus: Prometheus) -> bool:
    body = {"prompt": "the", "max_tokens": 20, "ignore_eos": True}
    httpx.post(f"{url}/v1/completions", json=body, timeout=30)
    return len(prometheus.ask("rate(dijiang_generation_tokens_total[1m]) > 1")) == 1


def _ask(prometheus: Prometheus, query: str) -> list[dict[str, Any]]:
    for variable, value in VARIABLES.items():
        query = query.replace(variable, value)
    return prometheus.ask(query)


NEEDS_TROUBLE = {"Refused for lack of room"}
"""Panels whose series begin with the first refusal."""


@pytest.mark.parametrize("where", QUERIES)
def test_every_query_of_the_dashboard_is_answered(where: str, prometheus: Prometheus) -> None:
    result = _ask(prometheus, QUERIES[where])
    if where.partition(",")[0] not in NEEDS_TROUBLE:
        # NaN is what a share or a quantile of nothing is.
        assert any(series["value"][1] != "NaN" for series in result), result


def test_no_alert_is_raised_by_a_server_that_is_well(prometheus: Prometheus) -> None:
    rules = prometheus.rules()
    assert len(rules) == 9
    assert [rule["name"] for rule in rules if rule["health"] != "ok"] == []
    assert [rule["name"] for rule in rules if rule["state"] != "inactive"] == []
