"""The playground's page: its headers, its policy, and that it can be turned off."""

import base64
import hashlib
import re
from typing import Any

import httpx

MAX_BYTES = 100_000


def directives(response: httpx.Response) -> dict[str, str]:
    policy = response.headers["content-security-policy"]
    return dict(directive.strip().split(" ", 1) for directive in policy.split(";"))


def hash_of(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def only_element(page: str, tag: str) -> str:
    [content] = re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", page, re.DOTALL)
    return str(content)


async def test_the_page_is_one_response_of_html(client: httpx.AsyncClient) -> None:
    response = await client.get("/")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.text.startswith("<!doctype html>")
    assert 10_000 < len(response.content) < MAX_BYTES


async def test_only_the_page_s_own_script_and_style_may_run(client: httpx.AsyncClient) -> None:
    response = await client.get("/")
    policy = directives(response)
    assert policy["script-src"] == hash_of(only_element(response.text, "script"))
    assert policy["style-src"] == hash_of(only_element(response.text, "style"))
    assert "unsafe" not in response.headers["content-security-policy"]


async def test_the_page_may_reach_its_own_server_only(client: httpx.AsyncClient) -> None:
    policy = directives(await client.get("/"))
    assert policy.pop("connect-src") == "'self'"
    assert policy.pop("img-src") == "data:"
    assert policy.pop("require-trusted-types-for") == "'script'"
    del policy["script-src"], policy["style-src"]
    assert set(policy.values()) == {"'none'"}
    assert {"default-src", "base-uri", "form-action", "frame-ancestors", "trusted-types"} == set(
        policy
    )


async def test_the_page_is_not_guessed_at_and_tells_nobody_where_one_was(
    client: httpx.AsyncClient,
) -> None:
    headers = (await client.get("/")).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-opener-policy"] == "same-origin"
    assert headers["cross-origin-resource-policy"] == "same-origin"


async def test_the_page_needs_no_key_but_what_it_asks_for_does(client_for: Any) -> None:
    client = client_for(api_key_hashes=(hashlib.sha256(b"sk-key").hexdigest(),))
    assert (await client.get("/")).status_code == 200
    for path in ("/metrics", "/v1/models", "//", "/index.html", "/;/"):
        assert (await client.get(f"http://server{path}")).status_code == 401, path


async def test_the_page_knows_nothing_of_the_server(client_for: Any) -> None:
    pages = [await client_for(served_model_name=(name,)).get("/") for name in ("a", "b")]
    assert pages[0].content == pages[1].content


async def test_the_page_can_be_turned_off(client_for: Any) -> None:
    client = client_for(playground=False)
    assert (await client.get("/")).status_code == 404
    assert (await client.get("/livez")).status_code == 200
    samples = (await client.get("/metrics")).text
    assert 'path="/"' not in samples
