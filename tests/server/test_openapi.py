"""The OpenAPI document against the routes and against what is really answered."""

import json
from typing import Any

import httpx
import jsonschema
import pytest

from dijiang_runtime.errors import EngineDeadError, EngineOverloadedError, NumericalError
from server.api_operations import OPERATIONS
from server.app import ROUTERS
from server.openapi import build_document
from tests.server.fake_engine import FakeEngine

DOCUMENT = build_document("1", has_playground=True, needs_key=False)
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
RESPONSES, EMBEDDINGS = "/v1/responses", "/v1/embeddings"
HELLO = [{"role": "user", "content": "Hello"}]


def check(instance: Any, schema: dict[str, Any]) -> None:
    """Raise unless `instance` is of `schema`, which refers into the document."""
    whole = {**schema, "components": DOCUMENT["components"]}
    jsonschema.Draft202012Validator(whole).validate(instance)


def check_response(method: str, path: str, response: httpx.Response) -> None:
    """Raise unless the document has this answer."""
    responses = DOCUMENT["paths"][path][method]["responses"]
    assert str(response.status_code) in responses, response.text
    described = responses[str(response.status_code)].get("content", {})
    media_type = response.headers.get("content-type", "").partition(";")[0]
    assert bool(described) == bool(response.content)
    if described:
        assert media_type in described
        if media_type == "application/json":
            check(response.json(), described[media_type].get("schema", {}))


def check_events(path: str, response: httpx.Response) -> list[dict[str, str]]:
    """Raise unless the document has every event of a stream. Returns their fields."""
    check_response("post", path, response)
    content = DOCUMENT["paths"][path]["post"]["responses"]["200"]["content"]
    schema = content["text/event-stream"]["itemSchema"]
    blocks = response.text.removesuffix("\n\n").split("\n\n")
    found = [dict(line.split(": ", 1) for line in block.split("\n")) for block in blocks]
    for event in found:
        check(event, schema)
        if event["data"] != "[DONE]":
            # The validator does not look into strings that are JSON.
            *_, form = schema.get("anyOf", [schema])
            data = form["properties"]["data"]
            assert data["contentMediaType"] == "application/json"
            check(json.loads(event["data"]), data["contentSchema"])
    return found


def test_every_route_is_in_the_document_and_nothing_else() -> None:
    routes = {
        (method.lower(), route.path.replace(":path}", "}"))  # type: ignore[attr-defined]
        for router in ROUTERS
        for route in router.routes
        for method in route.methods - {"HEAD"}  # type: ignore[attr-defined]
    }
    described = {(m, path) for path, entry in DOCUMENT["paths"].items() for m in entry}
    assert described == routes == {(o.method, o.path) for o in OPERATIONS}


def test_every_reference_leads_somewhere() -> None:
    def references(node: Any) -> list[str]:
        if isinstance(node, dict):
            here = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
            return here + [ref for value in node.values() for ref in references(value)]
        return [ref for item in node for ref in references(item)] if isinstance(node, list) else []

    schemas = DOCUMENT["components"]["schemas"]
    found = {reference.removeprefix("#/components/schemas/") for reference in references(DOCUMENT)}
    assert found == set(schemas)
    for schema in schemas.values():
        jsonschema.Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("path", [o.path for o in OPERATIONS if o.method == "get"])
@pytest.mark.parametrize("is_ready", [True, False], ids=["ready", "loading"])
async def test_what_is_asked_for_is_answered_as_described(
    client: httpx.AsyncClient, engine: FakeEngine, path: str, is_ready: bool
) -> None:
    engine.is_ready = is_ready
    response = await client.get(path.replace("{name}", "tiny"))
    check_response("get", path, response)
    if "{name}" in path:
        check_response("get", path, await client.get("/v1/models/other"))


EVERYTHING: dict[str, Any] = {
    "model": "tiny",
    "n": 2,
    "max_tokens": 5,
    "min_tokens": 1,
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 5,
    "min_p": 0.1,
    "frequency_penalty": 1,
    "presence_penalty": 1,
    "repetition_penalty": 1.1,
    "logit_bias": {"5": 1},
    "allowed_token_ids": [1, 2],
    "bad_words": ["x"],
    "seed": 1,
    "stream_interval": 2,
    "stop": ["x"],
    "stop_token_ids": [3],
    "include_stop_str_in_output": True,
    "ignore_eos": True,
    "prompt_logprobs": 1,
    "return_token_ids": True,
    "return_tokens_as_token_ids": True,
    "truncate_prompt_tokens": 50,
    "truncation_side": "right",
    "priority": 1,
    "cache_salt": "x",
    "timeout": 5.0,
    "user": "x",
}
OF_COMPLETIONS = {
    "prompt": "Hi",
    "echo": True,
    "logprobs": 2,
    "best_of": 3,
    "add_special_tokens": False,
}
OF_CHAT = {
    "messages": HELLO,
    "logprobs": True,
    "top_logprobs": 2,
    "max_completion_tokens": 5,
    "add_generation_prompt": True,
    "continue_final_message": False,
    "chat_template_kwargs": {"a": 1},
    # This model knows no tools, so that it may only be told not to call them.
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    "tool_choice": "none",
    "parallel_tool_calls": False,
}


OF_ENGINE: dict[str, Any] = {
    "model": "tiny",
    "truncate_prompt_tokens": 50,
    "truncation_side": "right",
    "priority": 1,
    "cache_salt": "x",
    "timeout": 5.0,
    "user": "x",
}
OF_EMBEDDINGS = {
    "input": ["Hi", "there"],
    "encoding_format": "float",
    "dimensions": 16,
    "add_special_tokens": True,
}
OF_RESPONSES = {
    "input": [{"type": "message", "role": "user", "content": [{"type": "text", "text": "Hi"}]}],
    "instructions": "Be brief.",
    "max_output_tokens": 5,
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 3,
    "seed": 1,
    "include": ["message.output_text.logprobs"],
    "top_logprobs": 2,
    "text": {"format": {"type": "text"}},
    # This model knows no tools.
    "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}}],
    "tool_choice": "none",
    "truncation": "auto",
    "store": False,
    "parallel_tool_calls": True,
    "metadata": {"a": "b"},
}


@pytest.mark.parametrize(
    ("path", "fields", "name"),
    [
        (RESPONSES, OF_RESPONSES, "ResponsesRequest"),
        (EMBEDDINGS, OF_EMBEDDINGS, "EmbeddingRequest"),
    ],
)
async def test_with_every_parameter_of_the_newer_endpoints_too(
    client: httpx.AsyncClient, path: str, fields: dict[str, Any], name: str
) -> None:
    body = {**OF_ENGINE, **fields}
    schema = DOCUMENT["components"]["schemas"][name]
    assert body.keys() | {"stream", "stream_options"} >= set(schema["properties"])
    check(body, schema)
    check_response("post", path, await client.post(path, json=body))
    nulls = {key: value if key in schema["required"] else None for key, value in body.items()}
    check(nulls, schema)
    check_response("post", path, await client.post(path, json=nulls))


async def test_every_event_of_a_response_is_as_described(client: httpx.AsyncClient) -> None:
    response = await client.post(RESPONSES, json={**OF_ENGINE, **OF_RESPONSES, "stream": True})
    for event in check_events(RESPONSES, response):
        assert event["event"] == json.loads(event["data"])["type"]


@pytest.mark.parametrize(
    ("path", "fields", "name"),
    [
        (COMPLETIONS, OF_COMPLETIONS, "CompletionRequest"),
        (CHAT, OF_CHAT, "ChatCompletionRequest"),
    ],
    ids=["completions", "chat"],
)
async def test_with_every_parameter_request_and_answer_are_as_described(
    client: httpx.AsyncClient, path: str, fields: dict[str, Any], name: str
) -> None:
    body = {**EVERYTHING, **fields, "response_format": {"type": "text"}}
    # The test is of all there are. Of those that say what an answer looks like, one at a time.
    others = {"grammar", "json_schema", "structured_outputs"}
    # This server takes no templates.
    others |= {"chat_template"} if path == CHAT else set()
    assert body.keys() | {"stream", "stream_options"} | others == set(
        DOCUMENT["components"]["schemas"][name]["properties"]
    )
    check(body, DOCUMENT["components"]["schemas"][name])
    response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    check_response("post", path, response)
    # A null is as if it were not there.
    required = DOCUMENT["components"]["schemas"][name]["required"]
    nulls = {key: value if key in required else None for key, value in body.items()}
    check(nulls, DOCUMENT["components"]["schemas"][name])
    check_response("post", path, await client.post(path, json=nulls))


@pytest.mark.parametrize(
    ("path", "fields"),
    [(COMPLETIONS, OF_COMPLETIONS), (CHAT, OF_CHAT)],
    ids=["completions", "chat"],
)
async def test_every_event_is_as_described(
    client: httpx.AsyncClient, engine: FakeEngine, path: str, fields: dict[str, Any]
) -> None:
    body = {**EVERYTHING, **fields, "stream": True}
    body["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
    body |= {"prompt_logprobs": None, "best_of": None}
    response = await client.post(path, json=body)
    *chunks, end = check_events(path, response)
    assert end == {"data": "[DONE]"} and len(chunks) > 2

    engine.script = lambda request: [NumericalError()]
    *_, end = check_events(path, await client.post(path, json=body))
    assert "numerical_error" in end["data"]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (EngineOverloadedError("full", retry_after_seconds=1.0), 429),
        (EngineDeadError(), 503),
        (NumericalError(), 500),
        (RuntimeError(), 500),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_errors_are_as_described(
    client: httpx.AsyncClient, engine: FakeEngine, error: Exception, status: int
) -> None:
    engine.raises = error
    response = await client.post(COMPLETIONS, json={"prompt": "x"})
    assert response.status_code == status
    check_response("post", COMPLETIONS, response)


@pytest.mark.parametrize(
    "path", [CHAT, COMPLETIONS, RESPONSES, EMBEDDINGS, "/tokenize", "/detokenize"]
)
async def test_refusals_are_as_described(client: httpx.AsyncClient, path: str) -> None:
    for body, headers in (
        (b"{", {"content-type": "application/json"}),
        (b"{}", {"content-type": "text/plain"}),
        (b" " * 3_000_000, {"content-type": "application/json"}),
        (b'{"model": "other", "prompt": "x"}', {"content-type": "application/json"}),
    ):
        response = await client.post(path, content=body, headers=headers)
        assert response.status_code >= 400
        check_response("post", path, response)


async def test_tokens_are_as_described(client: httpx.AsyncClient) -> None:
    for body in ({"prompt": "Hi", "return_token_strs": True}, {"messages": HELLO}):
        check(body, DOCUMENT["components"]["schemas"]["TokenizeRequest"])
        check_response("post", "/tokenize", await client.post("/tokenize", json=body))
    response = await client.post("/detokenize", json={"tokens": [1]})
    check_response("post", "/detokenize", response)


async def test_what_is_served_depends_on_the_server(client_for: Any) -> None:
    client = client_for(playground=False, api_key_hashes=("0" * 64,))
    assert (await client.get("/openapi.json")).status_code == 401

    document = build_document("1", has_playground=False, needs_key=True)
    assert "/" not in document["paths"]
    guarded = {
        path
        for path, entry in document["paths"].items()
        for operation in entry.values()
        if "security" in operation
    }
    assert document["paths"].keys() - guarded == {"/livez", "/readyz", "/health"}


@pytest.mark.parametrize(
    ("path", "name", "required"),
    [
        (COMPLETIONS, "CompletionRequest", {"prompt": "Hi"}),
        (CHAT, "ChatCompletionRequest", {"messages": HELLO}),
        (RESPONSES, "ResponsesRequest", {"input": "Hi"}),
        (EMBEDDINGS, "EmbeddingRequest", {"input": "Hi"}),
    ],
)
async def test_what_is_out_of_the_described_bounds_is_refused_and_named(
    client: httpx.AsyncClient, path: str, name: str, required: dict[str, Any]
) -> None:
    schema = DOCUMENT["components"]["schemas"][name]
    for field, described in schema["properties"].items():
        for form in described.get("anyOf", [described]):
            beyond = [form[key] - 1 for key in ("minimum",) if key in form]
            beyond += [form[key] + 1 for key in ("maximum",) if key in form]
            beyond += [form[key] for key in ("exclusiveMinimum",) if key in form]
            for value in beyond:
                body = {**required, field: value}
                with pytest.raises(jsonschema.ValidationError):
                    check(body, schema)
                response = await client.post(path, json=body)
                assert response.status_code == 400, (field, value)
                assert response.json()["error"]["param"] == field, (field, value)


TOOL = {"type": "function", "function": {"name": "a b"}}


@pytest.mark.parametrize(
    ("path", "name", "body", "param"),
    [
        (COMPLETIONS, "CompletionRequest", {"prompt": ""}, "prompt"),
        (COMPLETIONS, "CompletionRequest", {"prompt": []}, "prompt"),
        (EMBEDDINGS, "EmbeddingRequest", {"input": ""}, "input"),
        (EMBEDDINGS, "EmbeddingRequest", {"input": []}, "input"),
        (CHAT, "ChatCompletionRequest", {"messages": []}, "messages"),
        *(
            (CHAT, "ChatCompletionRequest", {"messages": HELLO, field: value}, field)
            for field, value in (
                ("stop", ""),
                ("stop", "x" * 257),
                ("stop", ["x"] * 17),
                ("stop", [""]),
                ("stop", ["x" * 257]),
                ("stop_token_ids", [-1]),
                ("allowed_token_ids", []),
                ("allowed_token_ids", [-1]),
                ("bad_words", ["x"] * 129),
                ("bad_words", [" "]),
                ("logit_bias", {"1": 101}),
                ("logit_bias", {"-1": 1}),
                ("logit_bias", {str(i): 0 for i in range(301)}),
                ("truncate_prompt_tokens", 0),
                ("cache_salt", ""),
                ("cache_salt", "a/b"),
                ("cache_salt", "x" * 129),
            )
        ),
        (CHAT, "ChatCompletionRequest", {"messages": HELLO, "tools": [TOOL]}, "tools[0]"),
        (
            RESPONSES,
            "ResponsesRequest",
            {"input": "Hi", "metadata": {str(i): "x" for i in range(17)}},
            "metadata",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_texts_and_lists_out_of_the_described_bounds_are_refused_and_named(
    client: httpx.AsyncClient, path: str, name: str, body: dict[str, Any], param: str
) -> None:
    with pytest.raises(jsonschema.ValidationError):
        check(body, DOCUMENT["components"]["schemas"][name])
    response = await client.post(path, json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"].startswith(param)
