"""Who may reach the server, with which key, and through which proxy."""

import base64

import pytest
from helm import Release, RenderError, render


def keys_of(release: Release) -> dict[str, str]:
    data = release.one("Secret")["data"]
    return {name: base64.b64decode(value).decode() for name, value in data.items()}


def test_without_any_value_a_key_is_made_and_asked_for() -> None:
    release = render()
    assert len(keys_of(release)["operator-key"]) == 40
    assert "DIJIANG_INSECURE" not in release.environment
    [key] = [item for item in release.server["env"] if item["name"] == "DIJIANG_API_KEYS"]
    assert key["valueFrom"]["secretKeyRef"]["name"] == "test-dijiang-api-keys"


def test_given_keys_are_a_file_and_never_an_argument_or_a_variable() -> None:
    release = render({"auth": {"apiKeys": ["first", "second"]}})
    assert keys_of(release)["api-keys"] == "first\nsecond"
    assert release.environment["DIJIANG_API_KEY_FILE"] == "/etc/dijiang/api-keys"
    assert "first" not in str(release.one("Deployment"))


def test_new_keys_roll_the_pods() -> None:
    checksums = {
        render({"auth": {"apiKeys": keys}}).pod["metadata"]["annotations"]["checksum/api-keys"]
        for keys in (["first"], ["second"])
    }
    assert len(checksums) == 2


def test_an_existing_secret_is_used_and_none_is_made() -> None:
    auth = {"existingSecret": "mine", "keysKey": "clients", "operatorKey": ""}
    release = render({"auth": auth})
    assert release.all("Secret") == []
    [volume] = [v for v in release.pod["spec"]["volumes"] if v["name"] == "api-keys"]
    assert volume["secret"]["secretName"] == "mine"
    assert volume["secret"]["items"] == [{"key": "clients", "path": "api-keys"}]


def test_an_open_server_is_asked_for_by_name_and_warned_about() -> None:
    release = render({"auth": {"enabled": False}})
    assert release.environment["DIJIANG_INSECURE"] == "true"
    assert release.all("Secret") == []
    assert "anyone who reaches the Service can use the model" in release.notes
    assert "anyone who reaches" not in render().notes


@pytest.mark.parametrize(
    ("auth", "message"),
    [
        ({"keysKey": "", "operatorKey": ""}, "auth.enabled needs a key"),
        ({"existingSecret": "mine", "apiKeys": ["a"]}, "leave them out"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(auth: dict, message: str) -> None:
    with pytest.raises(RenderError, match=message):
        render({"auth": auth})


def test_the_network_lets_requests_in_and_nothing_out() -> None:
    spec = render().one("NetworkPolicy")["spec"]
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    assert spec["ingress"] == [{"ports": [{"port": "http", "protocol": "TCP"}]}]
    assert spec["egress"] == []


def test_fetching_from_the_hub_opens_names_and_https_only() -> None:
    model = {"source": "hf", "hf": {"repo": "acme/model", "revision": "v1"}}
    egress = render({"model": model}).one("NetworkPolicy")["spec"]["egress"]
    assert {port["port"] for rule in egress for port in rule["ports"]} == {53, 443}


def test_a_closed_network_still_lets_prometheus_and_the_test_in() -> None:
    gateway = {"namespaceSelector": {"matchLabels": {"name": "gateways"}}}
    release = render({"networkPolicy": {"ingressFrom": [gateway]}})
    [rule] = release.one("NetworkPolicy")["spec"]["ingress"]
    assert rule["from"][0] == gateway
    assert "monitoring" in str(rule["from"][1])
    test_pod = rule["from"][2]["podSelector"]["matchLabels"]
    assert test_pod.items() <= release.one("Pod")["metadata"]["labels"].items()


def test_nginx_is_told_to_pass_tokens_on_at_once() -> None:
    annotations = render({"ingress": {"enabled": True, "preset": "nginx"}}).one("Ingress")[
        "metadata"
    ]["annotations"]
    prefix = "nginx.ingress.kubernetes.io/"
    assert annotations[prefix + "proxy-buffering"] == "off"
    assert annotations[prefix + "proxy-http-version"] == "1.1"
    assert annotations[prefix + "proxy-read-timeout"] == "3600"
    assert prefix + "upstream-hash-by" not in annotations


@pytest.mark.parametrize(
    ("preset", "annotation", "value"),
    [
        ("nginx", "nginx.ingress.kubernetes.io/upstream-hash-by", "$http_x_session_id"),
        ("haproxy", "haproxy.org/load-balance", "hdr(X-Session-Id)"),
    ],
)
def test_a_session_stays_with_its_replica(preset: str, annotation: str, value: str) -> None:
    ingress = {"enabled": True, "preset": preset, "sessionAffinity": True}
    annotations = render({"ingress": ingress}).one("Ingress")["metadata"]["annotations"]
    assert annotations[annotation] == value


def test_affinity_where_it_would_do_nothing_is_refused() -> None:
    with pytest.raises(RenderError, match=r"ingress\.sessionAffinity works with"):
        render({"ingress": {"enabled": True, "preset": "alb", "sessionAffinity": True}})


def test_annotations_of_the_operator_win_over_the_preset() -> None:
    name = "nginx.ingress.kubernetes.io/proxy-read-timeout"
    ingress = {"enabled": True, "preset": "nginx", "annotations": {name: "60"}}
    assert render({"ingress": ingress}).one("Ingress")["metadata"]["annotations"][name] == "60"


def test_a_route_has_no_time_limit() -> None:
    route = {"enabled": True, "parentRefs": [{"name": "gateway"}]}
    [rule] = render({"httpRoute": route}).one("HTTPRoute")["spec"]["rules"]
    assert rule["timeouts"] == {"request": "0s"}
    assert rule["backendRefs"] == [{"name": "test-dijiang", "port": 80}]


def test_a_route_goes_through_the_pool_where_there_is_one() -> None:
    values = {
        "httpRoute": {"enabled": True, "parentRefs": [{"name": "gateway"}]},
        "inferencePool": {"enabled": True, "pickerName": "picker"},
    }
    release = render(values)
    [rule] = release.one("HTTPRoute")["spec"]["rules"]
    assert rule["backendRefs"][0]["kind"] == "InferencePool"
    pool = release.one("InferencePool")["spec"]
    assert pool["targetPorts"] == [{"number": release.server["ports"][0]["containerPort"]}]
    assert pool["selector"]["matchLabels"].items() <= release.pod["metadata"]["labels"].items()


def test_a_pool_needs_a_picker() -> None:
    with pytest.raises(RenderError, match="pickerName"):
        render({"inferencePool": {"enabled": True}})
