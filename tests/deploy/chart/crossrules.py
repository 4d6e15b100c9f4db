"""Rules between objects, which no schema holds: what a cluster refuses, or what selects nothing."""

from collections.abc import Iterator
from typing import Any

from helm import Manifest, Release


def violations(release: Release) -> list[str]:
    """A sentence for each broken rule."""
    return [sentence for rule in RULES for sentence in rule(release)]


def _duplicates(release: Release) -> Iterator[str]:
    seen = set()
    for manifest in release.objects:
        key = manifest["kind"], manifest["metadata"]["name"]
        if key in seen:
            yield f"{key} is there twice"
        seen.add(key)


def _selectors(release: Release) -> Iterator[str]:
    labels = release.pod["metadata"]["labels"]
    for manifest in release.objects:
        kind, spec = manifest["kind"], manifest.get("spec", {})
        selector = spec.get("podSelector" if kind == "NetworkPolicy" else "selector")
        if selector is None:
            continue
        wanted = selector.get("matchLabels", selector)
        target = (
            release.one("Service")["metadata"]["labels"] if kind == "ServiceMonitor" else labels
        )
        if not wanted or not wanted.items() <= target.items():
            yield f"{kind} selects nothing: {wanted}"
    service = release.one("Service")["spec"]["selector"]
    for pod in release.all("Pod"):
        if service.items() <= pod["metadata"]["labels"].items():
            yield "the Service selects the test pod"


def _ports(release: Release) -> Iterator[str]:
    ports = {port["name"] for port in release.server["ports"]}
    if long := {port for port in ports if len(port) > 15}:
        yield f"port names may have 15 characters: {long}"
    for port in release.one("Service")["spec"]["ports"]:
        if port["targetPort"] not in ports:
            yield f"no container has the Service's port {port['targetPort']}"
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        if release.server[kind]["httpGet"]["port"] not in ports:
            yield f"no container has the port of the {kind}"


def _volumes(release: Release) -> Iterator[str]:
    pods = [release.pod["spec"], *(pod["spec"] for pod in release.all("Pod"))]
    for pod in pods:
        volumes = [volume["name"] for volume in pod.get("volumes", [])]
        if len(volumes) != len(set(volumes)):
            yield f"doubled volumes: {volumes}"
        for container in _containers(pod):
            mounts = container.get("volumeMounts", [])
            for mount in mounts:
                if mount["name"] not in volumes:
                    yield f"{container['name']} mounts {mount['name']}, which is no volume"
            if len({mount["mountPath"] for mount in mounts}) != len(mounts):
                yield f"{container['name']} mounts two volumes at one path"


def _environment(release: Release) -> Iterator[str]:
    for container in _containers(release.pod["spec"]):
        names = [item["name"] for item in container.get("env", [])]
        for name in {name for name in names if names.count(name) > 1}:
            yield f"{container['name']} has {name} twice"


def _secrets(release: Release) -> Iterator[str]:
    """What refers to a Secret of this release finds it, and the key in it."""
    made = {secret["metadata"]["name"]: secret["data"].keys() for secret in release.all("Secret")}
    for name, key in _secret_keys(release.objects):
        if name in made and key not in made[name]:
            yield f"the Secret {name} has no key {key}"
        if name.startswith(release.one("Deployment")["metadata"]["name"]) and name not in made:
            yield f"there is no Secret {name}"


def _resources(release: Release) -> Iterator[str]:
    resources = release.server["resources"]
    requests, limits = resources.get("requests", {}), resources.get("limits", {})
    for name in requests.keys() & limits.keys():
        if ("/" in name or name == "memory") and requests[name] != limits[name]:
            yield f"the request of {name} differs from its limit"


def _termination(release: Release) -> Iterator[str]:
    grace = release.pod["spec"]["terminationGracePeriodSeconds"]
    pre_stop = release.server.get("lifecycle", {}).get("preStop", {})
    command = pre_stop.get("exec", {}).get("command", ["", "0"])
    sleep = pre_stop.get("sleep", {}).get("seconds", int(command[1]))
    drain = int(release.environment["DIJIANG_DRAIN_SECONDS"])
    if sleep + drain >= grace:
        yield f"a drain of {sleep} + {drain} s does not fit the grace period of {grace} s"


def _scaling(release: Release) -> Iterator[str]:
    deployment = release.one("Deployment")
    for manifest in release.all("HorizontalPodAutoscaler") + release.all("ScaledObject"):
        spec = manifest["spec"]
        if spec["scaleTargetRef"]["name"] != deployment["metadata"]["name"]:
            yield f"{manifest['kind']} scales {spec['scaleTargetRef']}"
        if "replicas" in deployment["spec"]:
            yield "the Deployment fixes the replicas that an autoscaler decides"


def _containers(pod: Manifest) -> list[Manifest]:
    containers: list[Manifest] = pod.get("initContainers", []) + pod["containers"]
    return containers


def _secret_keys(node: Any) -> Iterator[tuple[str, str]]:
    """(Secret, key) of every reference anywhere in a tree of manifests."""
    if isinstance(node, list):
        for child in node:
            yield from _secret_keys(child)
    elif isinstance(node, dict):
        for field in ("secretKeyRef", "credentials"):
            if field in node:
                yield node[field]["name"], node[field]["key"]
        if "secretName" in node and "items" in node:
            for item in node["items"]:
                yield node["secretName"], item["key"]
        for child in node.values():
            yield from _secret_keys(child)


RULES = (
    _duplicates,
    _selectors,
    _ports,
    _volumes,
    _environment,
    _secrets,
    _resources,
    _termination,
    _scaling,
)
