"""Where the model comes from."""

import pytest
from helm import Manifest, Release, RenderError, render

HF: Manifest = {"source": "hf", "hf": {"repo": "acme/model", "revision": "v1"}}


def model_volume(release: Release) -> Manifest:
    [volume] = [v for v in release.pod["spec"]["volumes"] if v["name"] == "model"]
    return volume


def model_mount(container: Manifest) -> Manifest:
    [mount] = [m for m in container["volumeMounts"] if m["name"] == "model"]
    return mount


def test_the_demo_model_needs_no_volume_and_no_option() -> None:
    release = render()
    assert "DIJIANG_MODEL" not in release.environment
    assert [v["name"] for v in release.pod["spec"]["volumes"]] == ["tmp", "shm"]


def test_the_hub_is_asked_before_the_server_starts_and_for_one_revision() -> None:
    release = render({"model": HF | {"hf": HF["hf"] | {"tokenSecret": "hub"}}})
    [fetch] = release.pod["spec"]["initContainers"]
    assert fetch["command"][:4] == ["hf", "download", "acme/model", "--revision=v1"]
    assert "--include=*.safetensors" in fetch["command"]
    [token] = fetch["env"]
    assert token["valueFrom"]["secretKeyRef"] == {"name": "hub", "key": "token"}
    assert "HF_TOKEN" not in {item["name"] for item in release.server["env"]}
    assert release.environment["DIJIANG_SERVED_MODEL_NAME"] == "acme/model"


def test_the_server_reads_what_was_fetched_and_cannot_change_it() -> None:
    release = render({"model": HF})
    [fetch] = release.pod["spec"]["initContainers"]
    written, read = model_mount(fetch), model_mount(release.server)
    assert (written["readOnly"], read["readOnly"]) == (False, True)
    assert written["mountPath"] == read["mountPath"] == release.environment["DIJIANG_MODEL"]
    assert written["subPath"] == read["subPath"]


def test_another_revision_is_another_folder_of_the_claim() -> None:
    other = HF | {"hf": HF["hf"] | {"revision": "v2"}}
    paths = {model_mount(render({"model": model}).server)["subPath"] for model in (HF, other)}
    assert len(paths) == 2


def test_a_revision_is_asked_for() -> None:
    with pytest.raises(RenderError, match=r"model\.hf\.revision"):
        render({"model": {"source": "hf", "hf": {"repo": "acme/model"}}})


def test_an_existing_claim_is_mounted_read_only() -> None:
    pvc = {"claimName": "models", "subPath": "llama"}
    release = render({"model": {"source": "pvc", "pvc": pvc}})
    claim = model_volume(release)["persistentVolumeClaim"]
    assert claim == {"claimName": "models", "readOnly": True}
    assert model_mount(release.server)["subPath"] == "llama"
    assert release.all("PersistentVolumeClaim") == []


def test_an_oci_image_is_a_volume() -> None:
    model = {"source": "image", "image": {"reference": "registry.example/model:1"}}
    volume = model_volume(render({"model": model}))
    assert volume["image"] == {
        "reference": "registry.example/model:1",
        "pullPolicy": "IfNotPresent",
    }


def test_an_init_container_of_the_operators_writes_the_model() -> None:
    init = {"image": "registry.example/fetch:1", "command": ["fetch"]}
    release = render({"model": {"source": "init", "init": init}})
    [fetch] = release.pod["spec"]["initContainers"]
    assert fetch["image"] == "registry.example/fetch:1"
    assert model_mount(fetch)["readOnly"] is False


@pytest.mark.parametrize("source", ["pvc", "image", "init"])
def test_a_source_without_its_settings_is_refused(source: str) -> None:
    with pytest.raises(RenderError, match=rf"set model\.{source}\."):
        render({"model": {"source": source}})


def test_a_claim_that_one_node_can_mount_is_refused_for_several_replicas() -> None:
    storage = {"persistent": True, "accessMode": "ReadWriteOnce"}
    with pytest.raises(RenderError, match="ReadWriteOnce, which one node can mount"):
        render({"replicas": 2, "model": HF | {"storage": storage}})
    with pytest.raises(RenderError, match="ReadWriteOnce, which one node can mount"):
        render({"autoscaling": {"type": "hpa"}, "model": HF | {"storage": storage}})
    assert render({"model": HF | {"storage": storage}}).one("PersistentVolumeClaim")


def test_the_model_outlives_the_release() -> None:
    release = render({"model": HF | {"storage": {"persistent": True}}})
    annotations = release.one("PersistentVolumeClaim")["metadata"]["annotations"]
    assert annotations["helm.sh/resource-policy"] == "keep"
