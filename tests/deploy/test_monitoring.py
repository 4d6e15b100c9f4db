"""Dashboard and alerts against the metrics that the server exports."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "helm" / "dijiang"
DASHBOARD = json.loads((CHART / "files" / "dashboard.json").read_text(encoding="utf-8"))
[GROUP] = yaml.safe_load((CHART / "files" / "alerts.yaml").read_text(encoding="utf-8"))["groups"]
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def exported() -> set[str]:
    """Every series, by the table in docs/api.md, which its own test compares with the server."""
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(dijiang_\w+)` \|[^|]*\| (\w+) \|", page, re.MULTILINE)
    names = {name for name, kind in rows if kind != "histogram"}
    for name, kind in rows:
        if kind == "histogram":
            names |= {f"{name}{suffix}" for suffix in ("_bucket", "_sum", "_count")}
    assert len(names) > 40
    return names | {"up", "process_resident_memory_bytes", "process_open_fds"}


def queries() -> Iterator[tuple[str, str]]:
    """(where, PromQL) of every query in the dashboard, the alerts and the chart."""
    for panel in PANELS:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for rule in GROUP["rules"]:
        yield rule["alert"], rule["expr"]
    template = (CHART / "templates" / "scaledobject.yaml").read_text(encoding="utf-8")
    for query in re.findall(r"query: (.*)", template):
        yield "ScaledObject", query


def metrics_in(query: str) -> set[str]:
    return set(re.findall(r"\b(?:dijiang_|process_|vllm:)\w+", re.sub(r'"[^"]*"', "", query)))


@pytest.mark.parametrize(("where", "query"), list(queries()))
def test_every_metric_that_is_asked_for_is_exported(where: str, query: str) -> None:
    assert metrics_in(query) or "up{" in query
    assert metrics_in(query) <= exported()


def test_autoscalers_ask_for_exported_metrics() -> None:
    template = (CHART / "templates" / "horizontalpodautoscaler.yaml").read_text(encoding="utf-8")
    names = set(re.findall(r"name: (dijiang_\w+)", template))
    assert len(names) == 2
    assert names <= exported()


@pytest.mark.parametrize("rule", GROUP["rules"], ids=lambda rule: rule["alert"])
def test_every_alert_says_what_to_do(rule: dict[str, Any]) -> None:
    name = rule["alert"]
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert rule["annotations"]["runbook"] == f"docs/runbook.md#{name.lower()}"
    section = RUNBOOK.split(f"\n## {name}\n")[1].split("\n## ")[0]
    assert "**Look**" in section and "**Do**" in section


def test_every_alert_can_be_narrowed_to_a_release() -> None:
    for rule in GROUP["rules"]:
        selectors = re.findall(r"\{([^}]*)\}", rule["expr"])
        assert selectors
        assert all('job="dijiang"' in selector for selector in selectors)


def test_every_panel_is_explained_and_has_a_place_of_its_own() -> None:
    cells: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        covered = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not covered & cells, panel["title"]
        assert place["x"] + place["w"] <= 24
        cells |= covered
    assert all(panel["description"] for panel in PANELS)
    identities = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(identities)) == len(identities)


def test_every_query_follows_the_job_that_is_chosen() -> None:
    for panel in PANELS:
        for target in panel["targets"]:
            selectors = re.findall(r"\{([^}]*)\}", target["expr"])
            assert selectors, panel["title"]
            assert all('job=~"$job"' in selector for selector in selectors), panel["title"]


def test_the_dashboard_is_the_same_for_grafana_and_for_the_chart() -> None:
    plain = ROOT / "deploy" / "grafana" / "dijiang.json"
    assert json.loads(plain.read_text(encoding="utf-8")) == DASHBOARD
