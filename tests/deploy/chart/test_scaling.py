"""How many replicas there are, and how many may be away."""

import pytest
from helm import RenderError, render


@pytest.mark.parametrize("kind", ["hpa", "keda"])
def test_an_autoscaler_alone_decides_the_replicas(kind: str) -> None:
    release = render({"replicas": 3, "autoscaling": {"type": kind}})
    assert "replicas" not in release.one("Deployment")["spec"]
    assert render({"replicas": 3}).one("Deployment")["spec"]["replicas"] == 3


def test_the_autoscaler_counts_waiting_requests_and_slots_never_cpu() -> None:
    spec = render({"autoscaling": {"type": "hpa"}}).one("HorizontalPodAutoscaler")["spec"]
    targets = {
        metric["pods"]["metric"]["name"]: metric["pods"]["target"]["averageValue"]
        for metric in spec["metrics"]
    }
    assert targets == {"dijiang_num_requests_waiting": "5", "dijiang_state_slot_usage": "850m"}


def test_keda_asks_for_this_releases_series_alone() -> None:
    spec = render({"autoscaling": {"type": "keda"}}).one("ScaledObject")["spec"]
    queries = {trigger["name"]: trigger["metadata"]["query"] for trigger in spec["triggers"]}
    assert queries == {
        "waiting": 'sum(dijiang_num_requests_waiting{job="test-dijiang",namespace="serving"})',
        "slots": '100 * sum(dijiang_state_slot_usage{job="test-dijiang",namespace="serving"})',
    }
    assert spec["fallback"] == {"failureThreshold": 3, "replicas": 2}
    assert spec["cooldownPeriod"] == 300


def test_scaling_down_is_slow() -> None:
    spec = render({"autoscaling": {"type": "hpa"}}).one("HorizontalPodAutoscaler")["spec"]
    assert spec["behavior"]["scaleDown"]["stabilizationWindowSeconds"] == 300
    assert spec["behavior"]["scaleUp"]["stabilizationWindowSeconds"] == 0


def test_more_than_the_most_replicas_is_refused() -> None:
    with pytest.raises(RenderError, match="minReplicas is above"):
        render({"autoscaling": {"type": "hpa", "minReplicas": 5}})


def test_one_replica_at_a_time_may_be_away() -> None:
    spec = render({"replicas": 3}).one("PodDisruptionBudget")["spec"]
    assert spec["maxUnavailable"] == 1
    assert spec["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def test_a_single_replica_does_not_hold_up_a_node() -> None:
    assert render({"replicas": 1}).all("PodDisruptionBudget") == []
    autoscaled = render({"replicas": 3, "autoscaling": {"type": "hpa", "minReplicas": 1}})
    assert autoscaled.all("PodDisruptionBudget") == []
