"""What is wrong with a request is told in the OpenAI form, and hurts nobody else."""

import json
from typing import Any

import httpx
import pytest

from dijiang_runtime.errors import EngineDeadError, EngineOverloadedError
from server.protocol.common import UNSUPPORTED_FIELDS
from server.protocol.completions import CompletionRequest
from tests.server.fake_engine import FakeEngine

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
PROMPT: dict[str, Any] = {"model": "tiny", "prompt": "Once"}
MESSAGES: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
JSON = {"content-type": "application/json"}


async def check_refusal(
    client: httpx.AsyncClient,
    engine: FakeEngine,
    response: httpx.Response,
    status: int,
    param: str | None,
    code: str | None,
) -> None:
    """The answer is a refusal of this kind; the engine saw nothing; the next request succeeds."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["param"], error["code"]) == (param, code)
    assert error["message"]
    assert engine.requests == []
    golden = await client.post(COMPLETIONS, json=PROMPT)
    assert golden.json()["choices"][0]["text"] == " there was a cat"


BAD_COMPLETIONS: list[tuple[dict[str, Any], str]] = [
    ({"prompt": ""}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [""]}, "prompt"),
    ({"prompt": ["a", ""]}, "prompt"),
    ({"prompt": [[]]}, "prompt"),
    ({"prompt": [[1], []]}, "prompt"),
    ({"prompt": None}, "prompt"),
    ({"prompt": {"text": "x"}}, "prompt"),
    ({"prompt": ["a", 1]}, "prompt"),
    ({"prompt": [1, "a"]}, "prompt"),
    ({"prompt": [1.5]}, "prompt"),
    ({"prompt": [True]}, "prompt"),
    ({"prompt": [-1]}, "prompt"),
    ({"prompt": [300]}, "prompt"),
    ({"prompt": [[1], [2**31]]}, "prompt"),
    ({"prompt": [2**70]}, "prompt"),
    ({"prompt": ["a"] * 33}, "prompt"),
    ({"prompt": ["a"] * 5, "n": 8}, "prompt"),
    ({"prompt": "a" * 1601}, "prompt"),
    ({"n": 0}, "n"),
    ({"n": 9}, "n"),
    ({"n": -1}, "n"),
    ({"n": True}, "n"),
    ({"n": "2"}, "n"),
    ({"n": 10**6}, "n"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"min_tokens": -1}, "min_tokens"),
    ({"min_tokens": 5, "max_tokens": 4}, "min_tokens"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.01}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"top_k": 2**31}, "top_k"),
    ({"top_k": 2**63}, "top_k"),
    ({"min_p": 1.1}, "min_p"),
    ({"frequency_penalty": 2.5}, "frequency_penalty"),
    ({"presence_penalty": -2.5}, "presence_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"repetition_penalty": 5e-324}, "repetition_penalty"),
    ({"seed": 2**63}, "seed"),
    ({"seed": -(2**63) - 1}, "seed"),
    ({"seed": 1.0}, "seed"),
    ({"stop": 5}, "stop"),
    ({"stop": [""]}, "stop"),
    ({"stop": ["x"] * 17}, "stop"),
    ({"stop": ["x" * 257]}, "stop"),
    ({"stop": ["x"] * 2000}, "stop"),
    ({"stop_token_ids": [300]}, "stop_token_ids"),
    ({"stop_token_ids": [-1]}, "stop_token_ids"),
    ({"logit_bias": {"300": 1}}, "logit_bias"),
    ({"logit_bias": {"-1": 1}}, "logit_bias"),
    ({"logit_bias": {"secret": 1}}, "logit_bias"),
    ({"logit_bias": {"1": 101}}, "logit_bias"),
    ({"logit_bias": {str(i): 1 for i in range(301)}}, "logit_bias"),
    ({"logit_bias": [1]}, "logit_bias"),
    ({"logprobs": -1}, "logprobs"),
    ({"logprobs": 21}, "logprobs"),
    ({"logprobs": True}, "logprobs"),
    ({"prompt_logprobs": -1}, "prompt_logprobs"),
    ({"prompt_logprobs": 21}, "prompt_logprobs"),
    ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
    ({"echo": "yes"}, "echo"),
    ({"stream": 1}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    ({"model": 7}, "model"),
    ({"allowed_token_ids": []}, "allowed_token_ids"),
    ({"allowed_token_ids": [300]}, "allowed_token_ids"),
    ({"allowed_token_ids": [-1]}, "allowed_token_ids"),
    ({"allowed_token_ids": ["secret"]}, "allowed_token_ids[0]"),
    ({"bad_words": "word"}, "bad_words"),
    ({"bad_words": ["  "]}, "bad_words"),
    ({"bad_words": ["x" * 257]}, "bad_words"),
    ({"bad_words": ["x"] * 129}, "bad_words"),
    ({"best_of": 0}, "best_of"),
    ({"best_of": 9}, "best_of"),
    ({"best_of": 1, "n": 2}, "best_of"),
    ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
    ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
    ({"truncation_side": "middle"}, "truncation_side"),
    ({"priority": 2**31}, "priority"),
    ({"priority": 1.5}, "priority"),
    ({"timeout": 0}, "timeout"),
    ({"timeout": 86_401}, "timeout"),
    ({"return_token_ids": 1}, "return_token_ids"),
    ({"stream_interval": 0}, "stream_interval"),
    ({"stream_interval": 1.0}, "stream_interval"),
    ({"cache_salt": ""}, "cache_salt"),
    ({"cache_salt": "x" * 129}, "cache_salt"),
    ({"cache_salt": "a/b"}, "cache_salt"),
    ({"cache_salt": "a@b"}, "cache_salt"),
    ({"cache_salt": "a\\b"}, "cache_salt"),
    ({"cache_salt": "a\0b"}, "cache_salt"),
]


@pytest.mark.parametrize("is_stream", [False, True], ids=["json", "sse"])
@pytest.mark.parametrize(("change", "param"), BAD_COMPLETIONS, ids=lambda value: str(value)[:40])
async def test_a_bad_parameter_is_named(
    client: httpx.AsyncClient,
    engine: FakeEngine,
    change: dict[str, Any],
    param: str,
    is_stream: bool,
) -> None:
    body = {**PROMPT, "stream": is_stream, **change}
    if is_stream and "stream_options" in change:
        body["stream_options"] = {"include_usage": 1}
        param = "stream_options.include_usage"
    response = await client.post(COMPLETIONS, json=body)
    await check_refusal(client, engine, response, 400, param, None)


BAD_CHATS: list[tuple[dict[str, Any], str]] = [
    ({"messages": []}, "messages"),
    ({"messages": None}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": [{"role": "user", "content": ""}]}, "messages"),
    ({"messages": [{"content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
    (
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        "messages[0].content[0].text",
    ),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
    ({"messages": [MESSAGES["messages"][0], {"role": "root", "content": "x"}]}, "messages[1].role"),
    ({"messages": MESSAGES["messages"] * 1025}, "messages"),
    ({"messages": [{"role": "user", "content": "x" * 2000}]}, "messages"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_completion_tokens": 0}, "max_completion_tokens"),
    ({"max_completion_tokens": 3, "min_tokens": 4}, "min_tokens"),
    ({"logprobs": 1}, "logprobs"),
    ({"top_logprobs": 1}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
    (
        {"continue_final_message": True, "add_generation_prompt": True},
        "continue_final_message",
    ),
    ({"chat_template_kwargs": []}, "chat_template_kwargs"),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
    ({"chat_template_kwargs": {"bos_token": "x"}}, "chat_template_kwargs"),
]


@pytest.mark.parametrize(("change", "param"), BAD_CHATS, ids=lambda value: str(value)[:40])
async def test_a_bad_chat_parameter_is_named(
    client: httpx.AsyncClient, engine: FakeEngine, change: dict[str, Any], param: str
) -> None:
    response = await client.post(CHAT, json={**MESSAGES, **change})
    await check_refusal(client, engine, response, 400, param, None)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (COMPLETIONS, {**PROMPT, "prompt": "x" * 201}, "prompt"),
        (COMPLETIONS, {**PROMPT, "prompt": "x" * 200}, "prompt"),
        (COMPLETIONS, {**PROMPT, "max_tokens": 197}, "prompt"),
        (COMPLETIONS, {**PROMPT, "max_tokens": 2**63}, "prompt"),
        (CHAT, {**MESSAGES, "max_tokens": 199}, "messages"),
        (CHAT, {**MESSAGES, "messages": [{"role": "user", "content": "x" * 200}]}, "messages"),
    ],
)
async def test_what_does_not_fit_the_context_is_refused(
    client: httpx.AsyncClient, engine: FakeEngine, path: str, body: dict[str, Any], param: str
) -> None:
    response = await client.post(path, json=body)
    await check_refusal(client, engine, response, 400, param, "context_length_exceeded")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b"{} x",
        b"\xef\xbb\xbf{}",
        b"\xff\xfe",
        '{"prompt": "x"}'.encode("utf-16"),
        b"[" * 100_000,
        b'{"a":' * 1000,
        b'{"prompt": "\\ud800"}',
        b'{"n": ' + b"9" * 5000 + b"}",
        b'{"prompt": "\xff"}',
    ],
    ids=lambda content: repr(content[:16]),
)
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS], ids=["chat", "completions"])
async def test_what_is_no_json_object_is_refused(
    client: httpx.AsyncClient, engine: FakeEngine, path: str, content: bytes
) -> None:
    response = await client.post(path, content=content, headers=JSON)
    await check_refusal(client, engine, response, 400, None, None)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400"])
@pytest.mark.parametrize("name", ["temperature", "top_p", "min_p", "presence_penalty"])
async def test_numbers_are_finite(
    client: httpx.AsyncClient, engine: FakeEngine, name: str, number: str
) -> None:
    content = f'{{"prompt": "x", "{name}": {number}}}'
    response = await client.post(COMPLETIONS, content=content, headers=JSON)
    await check_refusal(client, engine, response, 400, name, None)


@pytest.mark.parametrize("name", sorted(UNSUPPORTED_FIELDS))
async def test_a_field_that_would_change_the_answer_is_never_ignored(
    client: httpx.AsyncClient, engine: FakeEngine, name: str
) -> None:
    is_of_completions = name in CompletionRequest.model_fields
    path, body = (CHAT, MESSAGES) if is_of_completions else (COMPLETIONS, PROMPT)
    response = await client.post(path, json={**body, name: "something"})
    await check_refusal(client, engine, response, 400, name, "unsupported_parameter")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("best_of", 2),
        ("best_of", True),
        ("use_beam_search", True),
        ("use_beam_search", 0),
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("functions", [{"name": "f"}]),
    ],
)
async def test_only_harmless_values_of_such_a_field_pass(
    client: httpx.AsyncClient, engine: FakeEngine, name: str, value: Any
) -> None:
    response = await client.post(CHAT, json={**MESSAGES, name: value})
    await check_refusal(client, engine, response, 400, name, "unsupported_parameter")


@pytest.mark.parametrize(
    ("message", "param"),
    [
        (
            {"content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1"}}]},
            "messages[0].content[0].type",
        ),
        ({"content": "x", "function_call": {"name": "f"}}, "messages[0].function_call"),
    ],
)
async def test_a_message_is_text_and_nothing_else(
    client: httpx.AsyncClient, engine: FakeEngine, message: dict[str, Any], param: str
) -> None:
    body = {"messages": [{"role": "user", **message}]}
    response = await client.post(CHAT, json=body)
    await check_refusal(client, engine, response, 400, param, "unsupported_parameter")


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS], ids=["chat", "completions"])
async def test_an_unknown_model_is_not_found(
    client: httpx.AsyncClient, engine: FakeEngine, path: str
) -> None:
    body = {**PROMPT, **MESSAGES, "model": "gpt-secret"}
    response = await client.post(path, json=body)
    await check_refusal(client, engine, response, 404, "model", "model_not_found")
    assert "gpt-secret" not in response.text


@pytest.mark.parametrize("body", [{"n": "canary"}, {"stop": [{"canary": 1}]}, {"canary": 1}])
async def test_nothing_of_the_request_is_echoed(
    client: httpx.AsyncClient, body: dict[str, Any]
) -> None:
    response = await client.post(COMPLETIONS, json={"logit_bias": {"canary": 1}, **body})
    assert response.status_code == 400
    assert "canary" not in response.text


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/v1/completions/", 404, "not_found"),
        ("GET", COMPLETIONS, 405, "method_not_allowed"),
        ("DELETE", CHAT, 405, "method_not_allowed"),
        ("GET", "/v1/models/other", 404, "model_not_found"),
        ("GET", "/docs", 404, "not_found"),
        ("GET", "/tokenize", 405, "method_not_allowed"),
    ],
)
async def test_what_the_router_refuses_has_the_same_form(
    client: httpx.AsyncClient, method: str, path: str, status: int, code: str
) -> None:
    response = await client.request(method, path, headers=JSON)
    assert response.status_code == status
    assert response.json()["error"]["code"] == code


async def test_a_wrong_method_learns_the_right_one(client: httpx.AsyncClient) -> None:
    assert (await client.get(CHAT)).headers["allow"] == "POST"


@pytest.mark.parametrize("is_stream", [False, True], ids=["json", "sse"])
@pytest.mark.parametrize(
    ("error", "status", "code", "retry_after"),
    [
        (EngineOverloadedError("full", retry_after_seconds=2.3), 429, "engine_overloaded", "3"),
        (EngineDeadError(retry_after_seconds=0.2), 503, "engine_dead", "1"),
        (RuntimeError("at 0x7f /root secret"), 500, "internal_error", None),
    ],
    ids=["overloaded", "dead", "unexpected"],
)
async def test_what_the_engine_refuses_has_a_status(
    client: httpx.AsyncClient,
    engine: FakeEngine,
    error: Exception,
    status: int,
    code: str,
    retry_after: str | None,
    is_stream: bool,
) -> None:
    engine.raises = error
    response = await client.post(COMPLETIONS, json={**PROMPT, "stream": is_stream})
    assert response.status_code == status
    assert response.json()["error"]["code"] == code
    assert response.headers.get("retry-after") == retry_after


async def test_an_unexpected_failure_tells_its_request_id_and_nothing_else(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.raises = RuntimeError("at 0x7f /root secret")
    response = await client.post(COMPLETIONS, json=PROMPT)
    message = response.json()["error"]["message"]
    assert response.headers["x-request-id"] in message
    assert "secret" not in response.text and "RuntimeError" not in response.text


async def test_when_one_prompt_is_refused_none_is_run(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.raises = EngineOverloadedError("full", retry_after_seconds=1)
    engine.raises_after = 2
    response = await client.post(COMPLETIONS, json={**PROMPT, "n": 4})
    assert response.status_code == 429
    assert [stream.aborted for stream in engine.streams] == [True, True]


async def test_before_the_model_is_loaded_requests_are_told_to_come_back(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.is_ready = False
    response = await client.post(COMPLETIONS, json=PROMPT)
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) >= 1
    assert json.loads(response.text)["error"]["code"] == "engine_dead"
