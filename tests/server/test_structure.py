"""The fields that ask for structured output, and grammars that are meant to hurt."""

import json
import sys
import time
from typing import Any

import httpx
import pytest

from dijiang_runtime import grammar_check
from dijiang_runtime.request import GrammarKind
from server.protocol.structure import StructureFields
from tests.server.fake_engine import FakeEngine

OBJECT = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
URLS = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi"}]},
    "/v1/completions": {"prompt": "Hi"},
}


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"response_format": {"type": "json_object"}}, GrammarKind.JSON_SCHEMA),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "strict": True, "schema": OBJECT},
                }
            },
            GrammarKind.JSON_SCHEMA,
        ),
        ({"structured_outputs": {"json": OBJECT}}, GrammarKind.JSON_SCHEMA),
        ({"structured_outputs": {"json": json.dumps(OBJECT)}}, GrammarKind.JSON_SCHEMA),
        ({"structured_outputs": {"regex": "a+"}}, GrammarKind.REGEX),
        ({"structured_outputs": {"choice": ["a", "b"]}}, GrammarKind.CHOICE),
        ({"structured_outputs": {"grammar": 'root ::= "a"'}}, GrammarKind.GRAMMAR),
        ({"grammar": 'root ::= "a"'}, GrammarKind.GRAMMAR),
        ({"json_schema": OBJECT}, GrammarKind.JSON_SCHEMA),
    ],
)
async def test_every_spelling_reaches_the_engine(
    client: httpx.AsyncClient, engine: FakeEngine, url: str, body: dict[str, Any], kind: GrammarKind
) -> None:
    response = await client.post(url, json={**URLS[url], **body, "max_tokens": 5})
    assert response.status_code == 200, response.text
    grammar = engine.requests[0].sampling.grammar
    assert grammar is not None and grammar.kind is kind


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        ({"structured_outputs": {"regex": "(a"}}, "structured_outputs.regex"),
        ({"structured_outputs": {"regex": "a(?=b)"}}, "structured_outputs.regex"),
        ({"structured_outputs": {"json": "[]"}}, "structured_outputs.json"),
        ({"structured_outputs": {"json": {"not": {}}}}, "structured_outputs.json"),
        ({"grammar": 'root ::= "a'}, "grammar"),
        ({"grammar": 'root ::= "a"', "response_format": {"type": "json_object"}}, "grammar"),
        ({"guided_regex": "a"}, "guided_regex"),
        ({"guided_json": OBJECT}, "guided_json"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_what_cannot_be_kept_is_refused_before_any_work(
    client: httpx.AsyncClient, engine: FakeEngine, body: dict[str, Any], param: str, stream: bool
) -> None:
    url = "/v1/chat/completions"
    response = await client.post(url, json={**URLS[url], **body, "stream": stream})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert engine.requests == []


HOSTILE: dict[str, dict[str, Any]] = {
    "catastrophic regex": {"regex": "(a+)+$"},
    "nested repetition": {"regex": "((((x{1,99}){1,99}){1,99}){1,99}){1,99}"},
    "product of automata": {"regex": "(a|b)*a(a|b){5000}"},
    "remote reference": {"json": {"$ref": "http://127.0.0.1:9/x"}},
    "file reference": {"json": {"$ref": "file:///etc/passwd"}},
    "reference to itself": {"json": {"$ref": "#"}},
    "deep schema": {"json": nested(500)},
    "huge enum": {"json": {"enum": [f"v{i * 7919}" for i in range(9000)]}},
    "schemas multiplied": {
        "json": {
            "allOf": [
                {"anyOf": [{"properties": {f"p{i}_{j}": {"type": "null"}}} for j in range(4)]}
                for i in range(14)
            ]
        }
    },
    "many multiples": {"json": {"type": "integer", "multipleOf": 999_999_937}},
    "deep rules": {
        "grammar": "start: a0\n"
        + "".join(f'a{i}: "(" a{i + 1} ")"\n' for i in range(4000))
        + 'a4000: "x"'
    },
    "doubling rules": {
        "grammar": "start: a0\n"
        + "".join(f"a{i}: a{i + 1} a{i + 1}\n" for i in range(60))
        + 'a60: "x"'
    },
    "deep brackets": {"grammar": "root ::= " + "(" * 20000 + '"a"' + ")" * 20000},
    "a megabyte": {"grammar": 'root ::= "' + "a" * 2**20 + '"'},
}


async def test_hostile_grammars_cost_little_and_hurt_nobody(client: httpx.AsyncClient) -> None:
    url = "/v1/completions"
    for name, structured in HOSTILE.items():
        started = time.monotonic()
        body = {**URLS[url], "structured_outputs": structured, "max_tokens": 1}
        response = await client.post(url, json=body)
        assert response.status_code in (200, 400), (name, response.text)
        assert len(response.text) < 2000, name
        assert time.monotonic() - started < 8, name
        after = await client.post(url, json={**URLS[url], "structured_outputs": {"regex": "ab"}})
        assert after.status_code == 200, name


async def test_a_grammar_that_takes_too_long_is_refused(client_for: Any) -> None:
    client = client_for(grammar_timeout_seconds=0.02)
    choice = [f"value {i}" for i in range(9000)]
    body = {**URLS["/v1/completions"], "structured_outputs": {"choice": choice}}
    response = await client.post("/v1/completions", json=body)
    assert response.status_code == 400
    assert "0.02 seconds" in response.json()["error"]["message"]


@pytest.mark.parametrize("program", ["/bin/false", "/nowhere/python"])
async def test_without_a_process_for_grammars_everything_else_is_answered(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    url = "/v1/completions"
    wanted = {**URLS[url], "structured_outputs": {"regex": "ab"}}
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", program)
        for _ in range(2):
            response = await client.post(url, json=wanted)
            assert response.status_code == 503
            assert response.json()["error"]["code"] == "grammar_check_unavailable"
            assert 1 <= int(response.headers["retry-after"]) <= grammar_check.PAUSE_SECONDS
            assert (await client.post(url, json=URLS[url])).status_code == 200
    # It is tried again only after the pause.
    assert (await client.post(url, json=wanted)).status_code == 503


async def test_grammars_are_taken_again_when_their_process_starts_again(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "/v1/completions"
    wanted = {**URLS[url], "structured_outputs": {"regex": "ab"}}
    monkeypatch.setattr(grammar_check, "PAUSE_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", "/bin/false")
        assert (await client.post(url, json=wanted)).status_code == 503
    assert (await client.post(url, json=wanted)).status_code == 200


def test_nothing_is_asked_for_by_a_format_of_text() -> None:
    assert (
        StructureFields.model_validate({"response_format": {"type": "text"}}).read_grammar() is None
    )
