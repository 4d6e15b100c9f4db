"""The Deployment: probes, draining, security, where the model comes from."""

import pytest
from helm import NEWEST, OLDEST, RenderError, render


def test_a_started_pod_is_judged_by_readiness_and_liveness_apart() -> None:
    server = render().server
    assert server["startupProbe"]["httpGet"]["path"] == "/readyz"
    assert server["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert server["livenessProbe"]["httpGet"]["path"] == "/livez"


def test_liveness_gives_up_later_than_readiness() -> None:
    server = render().server
    live, ready = server["livenessProbe"], server["readinessProbe"]
    seconds = [probe["periodSeconds"] * probe["failureThreshold"] for probe in (live, ready)]
    assert seconds == [60, 15]
    assert live["timeoutSeconds"] == 10
    assert ready["timeoutSeconds"] == 5


@pytest.mark.parametrize(
    ("budget", "period", "threshold"), [(900, 5, 180), (901, 5, 181), (7, 10, 1)]
)
def test_the_startup_budget_is_rounded_up_to_whole_probes(
    budget: int, period: int, threshold: int
) -> None:
    release = render({"startup": {"budgetSeconds": budget, "periodSeconds": period}})
    assert release.server["startupProbe"]["failureThreshold"] == threshold


def test_a_rollout_outlasts_the_startup_budget() -> None:
    release = render({"startup": {"budgetSeconds": 3600}})
    assert release.one("Deployment")["spec"]["progressDeadlineSeconds"] == 3660


def test_a_probe_that_restarts_before_it_unroutes_is_refused() -> None:
    with pytest.raises(RenderError, match="liveness would restart"):
        render({"liveness": {"periodSeconds": 1, "failureThreshold": 1}})


def test_the_grace_period_is_the_sum_of_what_draining_takes() -> None:
    release = render({"drain": {"preStopSeconds": 10, "streamSeconds": 300, "slackSeconds": 20}})
    assert release.pod["spec"]["terminationGracePeriodSeconds"] == 330
    assert release.environment["DIJIANG_DRAIN_SECONDS"] == "300"


def test_a_grace_period_that_would_cut_streams_is_refused() -> None:
    with pytest.raises(RenderError, match="running streams would be killed"):
        render({"drain": {"terminationGracePeriodSeconds": 30}})


def test_the_pod_sleeps_before_it_stops_as_its_kubernetes_can() -> None:
    assert render(kube=NEWEST).server["lifecycle"]["preStop"] == {"sleep": {"seconds": 15}}
    exec_hook = {"exec": {"command": ["sleep", "15"]}}
    assert render(kube=OLDEST).server["lifecycle"]["preStop"] == exec_hook
    assert "lifecycle" not in render({"drain": {"preStopSeconds": 0}}).server


def test_no_pod_is_taken_away_before_its_successor_serves() -> None:
    strategy = render().one("Deployment")["spec"]["strategy"]
    assert strategy["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}


def test_recreate_carries_no_settings_of_the_rolling_update() -> None:
    release = render({"strategy": {"type": "Recreate"}})
    assert release.one("Deployment")["spec"]["strategy"] == {"type": "Recreate"}


def test_service_links_cannot_set_the_servers_port() -> None:
    # A Service named "dijiang" would put DIJIANG_PORT=tcp://… into every pod.
    assert render(name="dijiang").pod["spec"]["enableServiceLinks"] is False


def test_openshift_may_assign_the_user() -> None:
    context = {"runAsUser": None, "runAsGroup": None, "fsGroup": None}
    release = render({"podSecurityContext": context})
    assert release.pod["spec"]["securityContext"].keys() & context.keys() == set()
    assert release.pod["spec"]["securityContext"]["runAsNonRoot"] is True


def test_every_folder_that_is_written_to_is_a_volume() -> None:
    mounts = {mount["mountPath"]: mount["name"] for mount in render().server["volumeMounts"]}
    assert mounts == {"/tmp": "tmp", "/dev/shm": "shm"}
    [shm] = [v for v in render().pod["spec"]["volumes"] if v["name"] == "shm"]
    assert shm["emptyDir"] == {"medium": "Memory", "sizeLimit": "256Mi"}


def test_a_gpu_is_requested_and_limited_and_brings_its_image() -> None:
    server = render({"gpu": {"count": 2, "resource": "amd.com/gpu"}}).server
    assert server["image"] == "dijiang-serving:0.1.0-cuda"
    assert server["resources"]["limits"] == {"amd.com/gpu": "2", "memory": "2Gi"}
    assert server["resources"]["requests"]["amd.com/gpu"] == "2"


def test_a_resource_claim_reaches_the_server() -> None:
    release = render({"resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": "one"}]})
    assert release.pod["spec"]["resourceClaims"][0]["resourceClaimTemplateName"] == "one"
    assert release.server["resources"]["claims"] == [{"name": "gpu"}]


def test_a_digest_wins_over_a_tag() -> None:
    digest = "sha256:" + "0" * 64
    image = {"repository": "registry.example/dijiang", "tag": "1", "digest": digest}
    assert render({"image": image}).server["image"] == f"registry.example/dijiang@{digest}"


def test_labels_of_users_do_not_reach_the_selector() -> None:
    labels = {"team": "serving", "app.kubernetes.io/name": "mine"}
    release = render({"podLabels": labels})
    selector = release.one("Deployment")["spec"]["selector"]["matchLabels"]
    assert selector == {"app.kubernetes.io/name": "dijiang", "app.kubernetes.io/instance": "test"}
    assert selector.items() <= release.pod["metadata"]["labels"].items()
    assert release.pod["metadata"]["labels"]["team"] == "serving"


def test_a_new_chart_alone_restarts_no_pod() -> None:
    assert "helm.sh/chart" not in render().pod["metadata"]["labels"]


def test_large_numbers_reach_the_server_whole() -> None:
    release = render({"config": {"stateMemoryBytes": 2**40, "stepTimeoutSeconds": 0.5}})
    assert release.environment["DIJIANG_STATE_MEMORY_BYTES"] == "1099511627776"
    assert release.environment["DIJIANG_STEP_TIMEOUT_SECONDS"] == "0.5"


def test_pods_spread_over_nodes_where_they_can() -> None:
    [constraint] = render().pod["spec"]["topologySpreadConstraints"]
    assert constraint["topologyKey"] == "kubernetes.io/hostname"
    assert constraint["whenUnsatisfiable"] == "ScheduleAnyway"
