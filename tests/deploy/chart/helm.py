"""Helm's own engine, which `helm-python-sdk` carries as a library: lint and render, no cluster."""

import json
from pathlib import Path
from typing import Any

import helm_python
import yaml
from helm_python import _native

CHART = Path(__file__).parents[3] / "deploy" / "helm" / "dijiang"
OPERATOR_APIS = (
    "monitoring.coreos.com/v1",
    "keda.sh/v1alpha1",
    "gateway.networking.k8s.io/v1",
    "inference.networking.k8s.io/v1",
)
"""What a cluster with every optional operator offers beside Kubernetes' own kinds."""

Manifest = dict[str, Any]
NEWEST = "1.37"
OLDEST = "1.29"

RenderError = helm_python.HelmError


class UniqueKeyLoader(yaml.SafeLoader):
    """PyYAML keeps the last of two equal keys in silence; an API server refuses them."""


def _construct_mapping(loader: UniqueKeyLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
    if doubled := {key for key in keys if keys.count(key) > 1}:
        raise yaml.constructor.ConstructorError(None, None, f"doubled keys {doubled}")
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


UniqueKeyLoader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)


class Release:
    """What the chart renders to: its objects by kind and name, and its notes."""

    def __init__(self, files: dict[str, str]) -> None:
        self.notes = next(text for path, text in files.items() if path.endswith("NOTES.txt"))
        self.objects: list[Manifest] = [
            document
            for path, text in files.items()
            if path.endswith(".yaml")
            for document in yaml.load_all(text, UniqueKeyLoader)
            if document
        ]

    def all(self, kind: str) -> list[Manifest]:
        return [manifest for manifest in self.objects if manifest["kind"] == kind]

    def one(self, kind: str) -> Manifest:
        [manifest] = self.all(kind)
        return manifest

    @property
    def pod(self) -> Manifest:
        """The pod template of the server."""
        template: Manifest = self.one("Deployment")["spec"]["template"]
        return template

    @property
    def server(self) -> Manifest:
        """The server's container."""
        container: Manifest = self.pod["spec"]["containers"][0]
        assert container["name"] == "server"
        return container

    @property
    def environment(self) -> dict[str, str]:
        """The server's variables that are given as text."""
        return {item["name"]: item["value"] for item in self.server["env"] if "value" in item}


def render(
    values: Manifest | None = None,
    *,
    name: str = "test",
    kube: str = NEWEST,
    apis: tuple[str, ...] = OPERATOR_APIS,
) -> Release:
    """Render as `helm template NAME` does, the schema checked first. Raises `RenderError`."""
    options = {
        "name": name,
        "namespace": "serving",
        "kube_version": f"v{kube}.0",
        "api_versions": list(apis),
    }
    with helm_python.Chart.load(CHART) as chart:
        chart.validate_schema(values or {})
        # Chart.render() cannot be told the cluster's version and kinds; the call below it can.
        arguments = json.dumps(values or {}), json.dumps(options)
        return Release(json.loads(_native.call_string("helm_render", chart._raw(), *arguments)))


def lint(values: Manifest) -> list[str]:
    """What `helm lint --strict` says, less what is only information."""
    report = helm_python.lint(CHART, values, strict=True)
    return [message["error"] for message in report["messages"] if message["severity"] > 1]
