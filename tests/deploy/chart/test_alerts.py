"""The alerts that the chart renders, judged by Prometheus' own `promtool`."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from helm import render

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool, of Prometheus, is not installed"
)
SELECTOR = 'job="test-dijiang",namespace="serving",instance="pod-1"'
COUNTS = f'dijiang_requests_finished_total{{{SELECTOR},path="/v1/completions"'

# For each alert: series as promtool writes them, a minute a step, and when it must fire.
QUIET = {f"up{{{SELECTOR}}}": "1x60"}
FIRES: dict[str, tuple[dict[str, str], str]] = {
    "DijiangDown": ({f"up{{{SELECTOR}}}": "1x5 0x60"}, "10m"),
    "DijiangReplicaDown": ({f"up{{{SELECTOR}}}": "1x5 0x60"}, "12m"),
    "DijiangNotReady": (QUIET | {f"dijiang_engine_ready{{{SELECTOR}}}": "0x60"}, "16m"),
    "DijiangEngineRestarts": (
        QUIET | {f"dijiang_engine_restarts{{{SELECTOR}}}": "0x10 1x50"},
        "12m",
    ),
    "DijiangErrors": (
        QUIET | {f'{COUNTS},outcome="ok"}}': "0+95x60", f'{COUNTS},outcome="error"}}': "0+5x60"},
        "15m",
    ),
    "DijiangRejects": (
        QUIET | {f'dijiang_admission_rejections_total{{{SELECTOR},reason="queue_full"}}': "0+1x60"},
        "15m",
    ),
    "DijiangQueueGrows": (QUIET | {f"dijiang_num_requests_waiting{{{SELECTOR}}}": "11x60"}, "15m"),
    "DijiangSlowFirstToken": (
        QUIET
        | {
            f'dijiang_time_to_first_token_seconds_bucket{{{SELECTOR},le="10.0"}}': "0+9x60",
            f'dijiang_time_to_first_token_seconds_bucket{{{SELECTOR},le="20.0"}}': "0+10x60",
            f'dijiang_time_to_first_token_seconds_bucket{{{SELECTOR},le="+Inf"}}': "0+10x60",
        },
        "20m",
    ),
    "DijiangFailedRows": (QUIET | {f"dijiang_failed_rows_total{{{SELECTOR}}}": "0x10 1x50"}, "12m"),
}
# A busy server on which nothing is wrong.
HEALTHY = QUIET | {
    f"dijiang_engine_ready{{{SELECTOR}}}": "1x60",
    f"dijiang_engine_restarts{{{SELECTOR}}}": "3x60",
    f'{COUNTS},outcome="ok"}}': "0+995x60",
    f'{COUNTS},outcome="error"}}': "0+5x60",
    f'dijiang_admission_rejections_total{{{SELECTOR},reason="draining"}}': "0+1x60",
    f'dijiang_admission_rejections_total{{{SELECTOR},reason="queue_full"}}': "7x60",
    f"dijiang_num_requests_waiting{{{SELECTOR}}}": "10x60",
    f'dijiang_time_to_first_token_seconds_bucket{{{SELECTOR},le="10.0"}}': "0+10x60",
    f'dijiang_time_to_first_token_seconds_bucket{{{SELECTOR},le="+Inf"}}': "0+10x60",
    f"dijiang_failed_rows_total{{{SELECTOR}}}": "2x60",
}


def rendered_rules() -> list[dict[str, Any]]:
    [group] = render().one("PrometheusRule")["spec"]["groups"]
    rules: list[dict[str, Any]] = group["rules"]
    return rules


def judge(folder: Path, rules: list[dict[str, Any]], tests: list[dict[str, Any]]) -> str:
    """promtool's complaints about what these rules do on these series; empty when it has none."""
    rules_file, tests_file = folder / "rules.yaml", folder / "tests.yaml"
    # Without annotations, whose wording is no matter here.
    plain = [{key: rule[key] for key in ("alert", "expr", "for", "labels")} for rule in rules]
    rules_file.write_text(yaml.safe_dump({"groups": [{"name": "g", "rules": plain}]}))
    suite = {"rule_files": [str(rules_file)], "evaluation_interval": "1m", "tests": tests}
    tests_file.write_text(json.dumps(suite))
    done = subprocess.run(
        ["promtool", "test", "rules", tests_file], capture_output=True, text=True, check=False
    )
    return "" if done.returncode == 0 else done.stdout + done.stderr


def series(values: dict[str, str]) -> list[dict[str, str]]:
    return [{"series": name, "values": counts} for name, counts in values.items()]


def test_every_alert_has_a_case() -> None:
    assert {rule["alert"] for rule in rendered_rules()} == set(FIRES)


@needs_promtool
def test_prometheus_accepts_the_rules(tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    spec = render().one("PrometheusRule")["spec"]
    rules.write_text(yaml.safe_dump(spec))
    done = subprocess.run(["promtool", "check", "rules", rules], capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_prometheus_can_parse_every_query_of_the_dashboard(tmp_path: Path) -> None:
    dashboard = json.loads(render().one("ConfigMap")["data"]["dijiang.json"])
    targets = [target for panel in dashboard["panels"] for target in panel.get("targets", [])]
    rules = [
        {"record": f"query_{i}", "expr": target["expr"].replace("$__rate_interval", "1m")}
        for i, target in enumerate(targets)
    ]
    assert len(rules) > 50
    file = tmp_path / "queries.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    done = subprocess.run(["promtool", "check", "rules", file], capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
@pytest.mark.parametrize("alert", FIRES)
def test_the_alert_fires(alert: str, tmp_path: Path) -> None:
    values, moment = FIRES[alert]
    # promtool compares labels too: take those that the alert itself reports when it should be
    # silent, by asking for none and reading its answer.
    case = {
        "interval": "1m",
        "input_series": series(values),
        "alert_rule_test": [{"eval_time": moment, "alertname": alert, "exp_alerts": []}],
    }
    complaint = judge(tmp_path, rendered_rules(), [case])
    assert "got:" in complaint and f'alertname="{alert}"' in complaint, complaint


@needs_promtool
@pytest.mark.parametrize("alert", FIRES)
def test_the_alert_is_silent_while_all_is_well(alert: str, tmp_path: Path) -> None:
    moments = [
        {"eval_time": moment, "alertname": alert, "exp_alerts": []} for moment in ("20m", "50m")
    ]
    case = {
        "interval": "1m",
        "input_series": series(HEALTHY),
        "alert_rule_test": moments,
    }
    assert judge(tmp_path, rendered_rules(), [case]) == ""
