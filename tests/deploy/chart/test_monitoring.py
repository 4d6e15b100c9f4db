"""Scraping, alerts and the dashboard, as the chart ships them."""

import json

import pytest
from helm import RenderError, render

MONITORING = {"ServiceMonitor", "PodMonitor", "PrometheusRule"}


def kinds(values: dict | None = None, *, apis: tuple[str, ...]) -> set[str]:
    return {manifest["kind"] for manifest in render(values, apis=apis).objects} & MONITORING


def test_metrics_and_alerts_are_on_where_the_operator_is_known() -> None:
    assert kinds(apis=("monitoring.coreos.com/v1",)) == {"ServiceMonitor", "PrometheusRule"}
    assert kinds(apis=()) == set()
    assert "No alerts" in render(apis=()).notes


def test_they_can_be_forced_on_and_off() -> None:
    on = {"metrics": {"serviceMonitor": {"enabled": True}, "rules": {"enabled": True}}}
    off = {"metrics": {"serviceMonitor": {"enabled": False}, "rules": {"enabled": False}}}
    assert kinds(on, apis=()) == {"ServiceMonitor", "PrometheusRule"}
    assert kinds(off, apis=("monitoring.coreos.com/v1",)) == set()


def test_a_pod_monitor_replaces_the_service_monitor() -> None:
    assert kinds(
        {"metrics": {"podMonitor": {"enabled": True}}}, apis=("monitoring.coreos.com/v1",)
    ) == {"PodMonitor", "PrometheusRule"}
    both = {"podMonitor": {"enabled": True}, "serviceMonitor": {"enabled": True}}
    with pytest.raises(RenderError, match="scrape every pod twice"):
        render({"metrics": both})


def test_prometheus_sends_the_key_that_metrics_ask_for() -> None:
    [endpoint] = render().one("ServiceMonitor")["spec"]["endpoints"]
    secret = render().one("Secret")
    credentials = endpoint["authorization"]["credentials"]
    assert credentials["name"] == secret["metadata"]["name"]
    assert credentials["key"] in secret["data"]
    open_server = render({"auth": {"enabled": False}}).one("ServiceMonitor")
    assert "authorization" not in open_server["spec"]["endpoints"][0]


@pytest.mark.parametrize("kind", ["ServiceMonitor", "PodMonitor"])
def test_alerts_look_for_the_job_that_is_scraped(kind: str) -> None:
    release = render({"metrics": {"podMonitor": {"enabled": kind == "PodMonitor"}}})
    spec = release.one(kind)["spec"]
    [endpoint] = spec.get("endpoints") or spec["podMetricsEndpoints"]
    [relabeling] = endpoint["relabelings"]
    job = relabeling["replacement"]
    [group] = release.one("PrometheusRule")["spec"]["groups"]
    assert len(group["rules"]) >= 9
    for rule in group["rules"]:
        assert f'job="{job}",namespace="serving"' in rule["expr"]
        assert 'job="dijiang"' not in rule["expr"]


def test_an_alert_can_be_left_out_and_another_added() -> None:
    mine = {"alert": "Mine", "expr": "vector(1)", "for": "1m"}
    rules = {"disabled": ["DijiangDown"], "extraRules": [mine]}
    release = render({"metrics": {"rules": rules}})
    [group] = release.one("PrometheusRule")["spec"]["groups"]
    names = [rule["alert"] for rule in group["rules"]]
    assert "DijiangDown" not in names
    assert names[-1] == "Mine"


def test_alerts_link_to_the_operators_copy_of_the_runbook() -> None:
    release = render({"metrics": {"rules": {"runbookUrl": "https://wiki.example/runbook"}}})
    [group] = release.one("PrometheusRule")["spec"]["groups"]
    annotations = group["rules"][0]["annotations"]
    assert annotations["runbook_url"] == "https://wiki.example/runbook#dijiangdown"


def test_the_dashboard_arrives_as_it_was_written() -> None:
    config_map = render().one("ConfigMap")
    assert config_map["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(config_map["data"]["dijiang.json"])["uid"] == "dijiang"


def test_the_test_pod_gets_the_check_as_it_was_written() -> None:
    [container] = render().one("Pod")["spec"]["containers"]
    compile(container["args"][0], "check_server.py", "exec")
    assert container["command"] == ["python", "-c"]
