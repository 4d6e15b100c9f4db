"""Every example of values, on the oldest and newest Kubernetes: valid, consistent, startable."""

import os
from pathlib import Path

import helm
import jsonschema
import kubernetes_validate
import pytest
import yaml
from crds import load_crds
from crossrules import violations

from dijiang_runtime.config import EngineConfig
from server.config import ServerConfig, merge_options

CASES = {"defaults": {}} | {
    path.name.removesuffix("-values.yaml"): yaml.safe_load(path.read_text(encoding="utf-8"))
    for path in sorted((helm.CHART / "ci").glob("*-values.yaml"))
}
CRDS = load_crds(Path(folder)) if (folder := os.environ.get("CRDS")) else {}
"""Definitions of custom resources to validate against, where a folder of them is given."""

REFUSED_ON_OLDEST = {"model-image"}
PASSED_THROUGH = {"resource-claims"}
"""What the operator writes as in a pod, and the oldest Kubernetes writes otherwise."""

every_case = pytest.mark.parametrize("case", CASES)
oldest_and_newest = pytest.mark.parametrize("kube", [helm.OLDEST, helm.NEWEST])


def render(case: str, kube: str) -> helm.Release:
    if case in REFUSED_ON_OLDEST and kube == helm.OLDEST:
        with pytest.raises(helm.RenderError, match=r"need Kubernetes 1\.31"):
            helm.render(CASES[case], kube=kube)
        pytest.skip("refused, as it should be")
    if case in PASSED_THROUGH and kube == helm.OLDEST:
        pytest.skip("written for a newer Kubernetes")
    return helm.render(CASES[case], kube=kube)


@every_case
@oldest_and_newest
def test_kubernetes_knows_every_field(case: str, kube: str) -> None:
    for manifest in render(case, kube).objects:
        if manifest["apiVersion"] not in helm.OPERATOR_APIS:
            kubernetes_validate.validate(manifest, kube, strict=True)


@pytest.mark.skipif(not CRDS, reason="CRDS= names no folder of definitions")
@every_case
def test_the_operators_know_every_field(case: str) -> None:
    for manifest in render(case, helm.NEWEST).objects:
        if schema := CRDS.get((manifest["apiVersion"], manifest["kind"])):
            jsonschema.Draft202012Validator(schema).validate(manifest)


@every_case
@oldest_and_newest
def test_the_objects_fit_each_other(case: str, kube: str) -> None:
    assert violations(render(case, kube)) == []


@every_case
def test_the_server_accepts_its_options(case: str) -> None:
    release = render(case, helm.NEWEST)
    secrets = {item["name"]: "a-key" for item in release.server["env"] if "valueFrom" in item}
    environ = {"DIJIANG_MODEL": "demo", **release.environment, **secrets}
    environ.pop("DIJIANG_API_KEY_FILE", None)  # The Secret is not mounted here.
    if not secrets and "DIJIANG_INSECURE" not in environ:
        environ["DIJIANG_API_KEYS"] = "a-key"

    server, engine = ServerConfig.resolve({}, environ), merge_options(EngineConfig, {}, environ)

    known = {*server.__struct_fields__, *engine.__struct_fields__, "api_keys"}
    given = {name.removeprefix("DIJIANG_").lower() for name in environ if "DIJIANG_" in name}
    assert given <= known
    assert not server.is_loopback


@every_case
def test_every_pod_is_restricted(case: str) -> None:
    release = render(case, helm.NEWEST)
    for pod in [release.pod["spec"], *(pod["spec"] for pod in release.all("Pod"))]:
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        ours = [*pod.get("initContainers", []), *pod["containers"]]
        for container in ours:
            if container["name"] in ("wait", "side"):
                continue  # The operator's own.
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}


@every_case
def test_helm_lint_finds_nothing(case: str) -> None:
    assert helm.lint(CASES[case]) == []


@every_case
def test_nothing_but_custom_kinds_needs_an_operator(case: str) -> None:
    """A cluster without operators gets no object that it does not know, unless it is asked for."""
    asked_for = {"monitoring", "pod-monitor"}
    kinds = {manifest["kind"] for manifest in render(case, helm.NEWEST).objects}
    plain = helm.render(CASES[case], apis=())
    monitoring = {"ServiceMonitor", "PodMonitor", "PrometheusRule"}
    if case not in asked_for:
        assert {manifest["kind"] for manifest in plain.objects} == kinds - monitoring
