"""Request ids, limits and API keys, before any route."""

import hashlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.routing import Route

from server.app import ROUTERS
from server.middleware import PUBLIC_PATHS
from tests.server.fake_engine import FakeEngine

URL = "/v1/completions"
BODY = {"prompt": "Once"}
JSON = {"content-type": "application/json"}
KEY, OTHER_KEY = "sk-first", "sk-second"
HASHES = tuple(hashlib.sha256(key.encode()).hexdigest() for key in (KEY, OTHER_KEY))


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


@pytest.mark.parametrize("sent", ["abc", "a.b-c_9", "x" * 64])
async def test_a_harmless_request_id_is_echoed(client: httpx.AsyncClient, sent: str) -> None:
    response = await client.get("/livez", headers={"X-Request-Id": sent})
    assert response.headers["x-request-id"] == sent


@pytest.mark.parametrize("sent", ["", "x" * 65, "a b", "a;b", "<script>", "a\tb", "é".encode()])
async def test_any_other_request_id_is_replaced(
    client: httpx.AsyncClient, sent: str | bytes
) -> None:
    response = await client.get("/livez", headers=[("X-Request-Id", sent)])  # type: ignore[list-item]
    assert response.headers["x-request-id"].startswith("req-")


@pytest.mark.parametrize("path", ["/livez", "/nothing", "/v1/models"])
async def test_every_response_has_a_request_id_of_its_own(
    client: httpx.AsyncClient, path: str
) -> None:
    ids = {(await client.get(path)).headers["x-request-id"] for _ in range(3)}
    assert len(ids) == 3


async def test_a_body_at_the_limit_is_read_and_one_byte_more_is_not(
    client_for: Any,
) -> None:
    client = client_for(max_body_bytes=2000)
    body = b'{"prompt": "Once"}'
    fits = await client.post(URL, content=body.ljust(2000), headers=JSON)
    assert fits.status_code == 200
    too_long = await client.post(URL, content=body.ljust(2001), headers=JSON)
    assert too_long.status_code == 413
    assert too_long.json()["error"]["code"] == "request_too_large"
    assert too_long.headers["connection"] == "close"


async def test_a_body_without_a_length_is_counted_while_it_is_read(client_for: Any) -> None:
    client = client_for(max_body_bytes=2000)
    response = await client.post(URL, content=chunks(b" " * 1500, b" " * 501), headers=JSON)
    assert response.status_code == 413


@pytest.mark.parametrize("length", ["99999999999999999999999999", "-1", "+5", "0x10", "1 1"])
async def test_a_length_that_is_none_is_refused(client: httpx.AsyncClient, length: str) -> None:
    headers = {**JSON, "content-length": length}
    response = await client.post(URL, content=b"{}", headers=headers)
    assert response.status_code in (400, 413)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "multipart/form-data; boundary=x"},
        {"content-type": "application/json; charset=utf-16"},
        {**JSON, "content-encoding": "gzip"},
    ],
    ids=str,
)
async def test_a_body_that_is_not_plain_json_is_refused_unread(
    client: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    read = []

    async def body() -> AsyncIterator[bytes]:
        read.append(True)
        yield b"{}"

    response = await client.post(URL, content=body(), headers=headers)
    assert response.status_code == 415
    assert response.json()["error"]["code"] == "unsupported_media_type"
    assert not read


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "TRACE", "HELLO"])
async def test_a_wrong_method_is_refused_whatever_it_brings(
    client: httpx.AsyncClient, method: str
) -> None:
    for headers in ({}, {"content-type": "text/plain"}):
        response = await client.request(method, URL, content=b"x", headers=headers)
        assert (response.status_code, response.headers["allow"]) == (405, "POST")
        response = await client.post("/v1/models", content=b"x", headers=headers)
        assert (response.status_code, response.headers["allow"]) == (405, "GET")


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "Application/JSON"])
async def test_json_may_be_spelled_with_its_charset(client: httpx.AsyncClient, kind: str) -> None:
    response = await client.post(URL, json=BODY, headers={"content-type": kind})
    assert response.status_code == 200


@pytest.mark.parametrize("key", [KEY, OTHER_KEY])
@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
async def test_every_configured_key_opens(client_for: Any, key: str, scheme: str) -> None:
    client = client_for(api_key_hashes=HASHES)
    headers = {"Authorization": f"{scheme} {key}"}
    assert (await client.post(URL, json=BODY, headers=headers)).status_code == 200


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"Bearer",
        b"Bearer ",
        b"Bearer sk-firsT",
        b"Bearer sk-first2",
        b"Basic sk-first",
        b"sk-first",
        "Bearer sk-fir\u00e9".encode(),
        b"Bearer \xff\xfe",
    ],
    ids=repr,
)
async def test_a_missing_or_wrong_key_is_refused(
    client_for: Any, engine: FakeEngine, value: bytes | None
) -> None:
    headers = [] if value is None else [(b"Authorization", value)]
    response = await client_for(api_key_hashes=HASHES).post(URL, json=BODY, headers=headers)
    assert response.status_code == 401
    assert response.json()["error"]["code"] == "invalid_api_key"
    assert response.headers["www-authenticate"] == "Bearer"
    assert engine.requests == []


async def test_two_keys_at_once_are_refused(client_for: Any) -> None:
    headers = [("Authorization", f"Bearer {KEY}"), ("Authorization", "Bearer x")]
    response = await client_for(api_key_hashes=HASHES).post(URL, json=BODY, headers=headers)
    assert response.status_code == 401


async def test_every_route_but_the_probes_and_the_page_needs_a_key(
    app_for: Any, client_for: Any
) -> None:
    """A new route is guarded unless it is added to this list on purpose."""
    app = app_for(api_key_hashes=HASHES)
    client = client_for(app)
    routes = [route for router in ROUTERS for route in router.routes]
    assert len(routes) > 8
    for route in routes:
        assert isinstance(route, Route)
        for method in route.methods or ():
            response = await client.request(method, route.path, headers=JSON)
            is_open = response.status_code != 401
            assert is_open == (route.path in PUBLIC_PATHS), route.path
    assert PUBLIC_PATHS == {"/livez", "/readyz", "/health", "/"}


@pytest.mark.parametrize(
    "path",
    [
        "//livez",
        "/livez/",
        "/LIVEZ",
        "/livez%2f..%2fmetrics",
        "/livez/../metrics",
        "/nothing",
        "/metrics?/livez",
        "/metrics#/livez",
    ],
)
async def test_only_the_exact_path_of_a_probe_is_open(client_for: Any, path: str) -> None:
    response = await client_for(api_key_hashes=HASHES).get(f"http://server{path}")
    assert response.status_code == 401


@pytest.mark.parametrize("host", ["server/livez?", "server#", "livez", "server/livez"])
async def test_the_host_header_opens_nothing(client_for: Any, host: str) -> None:
    client = client_for(api_key_hashes=HASHES)
    response = await client.get("/metrics", headers={"Host": host})
    assert response.status_code == 401


async def test_a_client_that_leaves_in_its_own_body_is_no_failure(
    app_for: Any, caplog: pytest.LogCaptureFixture
) -> None:
    messages = [
        {"type": "http.request", "body": b'{"prompt"', "more_body": True},
        {"type": "http.disconnect"},
    ]
    sent: list[Any] = []

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": URL,
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }
    await app_for()(scope, receive, send)
    assert sent == []
    assert caplog.records == []


async def test_no_cors_header_is_sent(client: httpx.AsyncClient) -> None:
    headers = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    for method in ("GET", "OPTIONS"):
        response = await client.request(method, "/v1/models", headers=headers)
        assert not [name for name in response.headers if name.startswith("access-control")]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/embeddings"])
async def test_the_access_log_has_a_hash_of_the_user(
    client_for: Any, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    caplog.set_level("INFO")
    body = {"prompt": "Hi", "input": "Hi", "user": "ann@example.com"}
    await client_for(access_log=True).post(path, json=body)
    own = [record for record in caplog.records if record.name == "server.middleware"]
    [line] = [record.getMessage() for record in own]
    assert line.endswith(" user=" + hashlib.sha256(b"ann@example.com").hexdigest()[:16])
    assert "ann" not in line
