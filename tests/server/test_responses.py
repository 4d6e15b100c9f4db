"""`/v1/responses`: objects and events as OpenAI's types have them, and what is refused."""

import json
from typing import Any

import httpx
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from dijiang_runtime.errors import NumericalError
from dijiang_runtime.request import RequestOutput
from tests.server.fake_engine import FakeEngine

PATH = "/v1/responses"
LOGPROBS = "message.output_text.logprobs"
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def read_events(text: str) -> list[dict[str, Any]]:
    """The data of the events, each of which must be one of OpenAI's."""
    found = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        EVENT.validate_python(event, strict=True)
        found.append(event)
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    return found


async def test_a_text_is_answered_with_a_response(client: httpx.AsyncClient) -> None:
    body = {"input": "Once", "instructions": "Tell.", "metadata": {"a": "b"}, "user": "me"}
    answer = (await client.post(PATH, json=body)).json()

    response = Response.model_validate(answer, strict=True)
    assert response.output_text == " there was a cat"
    assert response.status == "completed" and response.incomplete_details is None
    assert response.id.startswith("resp-") and response.output[0].id == f"msg{response.id[4:]}"
    assert response.metadata == {"a": "b"} and response.instructions == "Tell."
    assert response.usage is not None
    assert response.usage.output_tokens == len(" there was a cat")
    assert answer["store"] is False


async def test_the_answer_is_cut_at_max_output_tokens(client: httpx.AsyncClient) -> None:
    answer = (await client.post(PATH, json={"input": "Once", "max_output_tokens": 3})).json()
    response = Response.model_validate(answer, strict=True)
    assert response.status == "incomplete" and response.output_text == " th"
    assert answer["incomplete_details"] == {"reason": "max_output_tokens"}
    assert answer["output"][0]["status"] == "incomplete"


async def test_a_conversation_is_the_prompt_that_a_chat_would_have(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    first = (await client.post(PATH, json={"input": "Once"})).json()
    items = [{"role": "user", "content": "Once"}, *first["output"]]
    items.append({"role": "user", "content": [{"type": "input_text", "text": "And?"}]})
    await client.post(PATH, json={"input": items, "instructions": "Tell."})
    messages = [
        {"role": "system", "content": "Tell."},
        {"role": "user", "content": "Once"},
        {"role": "assistant", "content": " there was a cat"},
        {"role": "user", "content": "And?"},
    ]
    await client.post("/v1/chat/completions", json={"messages": messages})
    _, response, chat = engine.requests
    assert response.prompt_token_ids == chat.prompt_token_ids


@pytest.mark.parametrize("wants_logprobs", [False, True])
async def test_a_stream_is_the_sequence_of_events_that_openai_sends(
    client: httpx.AsyncClient, wants_logprobs: bool
) -> None:
    body: dict[str, Any] = {"input": "Once", "max_output_tokens": 6, "seed": 1}
    if wants_logprobs:
        body |= {"include": [LOGPROBS], "top_logprobs": 2}
    whole = (await client.post(PATH, json=body)).json()
    events = read_events((await client.post(PATH, json={**body, "stream": True})).text)

    kinds = [event["type"].removeprefix("response.") for event in events]
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert kinds == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *["output_text.delta"] * len(deltas),
        *("output_text.done", "content_part.done", "output_item.done", "incomplete"),
    ]
    text = whole["output"][0]["content"][0]["text"]
    assert "".join(event["delta"] for event in deltas) == text == events[-4]["text"]
    logprobs = [entry for event in deltas for entry in event["logprobs"]]
    assert logprobs == whole["output"][0]["content"][0]["logprobs"]
    assert len(logprobs) == (6 if wants_logprobs else 0)

    def without_names(response: dict[str, Any]) -> dict[str, Any]:
        output = [{**item, "id": None} for item in response["output"]]
        return {**response, "id": None, "created_at": None, "output": output}

    assert without_names(events[-1]["response"]) == without_names(whole)


async def test_a_stream_that_fails_ends_with_failed(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.script = lambda request: [
        RequestOutput(request_id=request.request_id, text="a", token_ids=(1,)),
        NumericalError(),
    ]
    events = read_events((await client.post(PATH, json={"input": "x", "stream": True})).text)
    assert events[-1]["type"] == "response.failed"
    assert events[-1]["response"]["status"] == "failed"
    assert "non-finite" in events[-1]["response"]["error"]["message"]


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"input": None}, "input", None),
        ({"input": []}, "input", None),
        ({"input": ""}, "input", None),
        ({"input": [{"role": "robot", "content": "x"}]}, "input", None),
        ({"input": [{"content": "x"}]}, "input[0].role", None),
        ({"input": [{"role": "user"}]}, "input[0].content", None),
        ({"input": [{"type": "function_call"}]}, "input[0].name", None),
        (
            {"input": [{"type": "function_call", "name": "f", "arguments": "["}]},
            "input[0].arguments",
            None,
        ),
        (
            {"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]},
            "input[0].call_id",
            None,
        ),
        (
            {
                "instructions": "x",
                "input": [
                    {"type": "function_call", "name": "f", "arguments": "{}", "call_id": "1"}
                ],
            },
            "input",
            "unsupported_parameter",
        ),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id", None),
        ({"input": [{"type": "function_call_output", "call_id": "x"}]}, "input[0].output", None),
        ({"input": [{"type": "item_reference"}]}, "input[0].type", "unsupported_parameter"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input[0].content[0].type",
            "unsupported_parameter",
        ),
        ({"input": "a" * 300}, "input", "context_length_exceeded"),
        ({"max_output_tokens": 0}, "max_output_tokens", None),
        ({"max_output_tokens": 500}, "input", "context_length_exceeded"),
        ({"temperature": 3}, "temperature", None),
        ({"top_logprobs": 1}, "top_logprobs", None),
        ({"include": [LOGPROBS], "top_logprobs": 21}, "top_logprobs", None),
        ({"stream_options": {}}, "stream_options", None),
        ({"metadata": {str(i): "" for i in range(17)}}, "metadata", None),
        *(
            (fields, next(iter(fields)), "unsupported_parameter")
            for fields in (
                {"store": True},
                {"previous_response_id": "resp_1"},
                {"conversation": "c"},
                {"background": True},
                {"include": ["reasoning.encrypted_content"]},
                {"reasoning": {"effort": "low"}},
                {"prompt": {"id": "p"}},
                {"n": 2},
                {"max_tokens": 5},
                {"messages": []},
                {"response_format": {"type": "json_object"}},
            )
        ),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type", None),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.name", None),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema", None),
        ({"text": {"verbosity": "low"}}, "text.verbosity", "unsupported_parameter"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "unsupported_parameter"),
        ({"tools": [{"type": "function"}]}, "tools[0].name", None),
        ({"tools": [{"type": "function", "name": "?"}]}, "tools[0].name", None),
        ({"tools": [{"type": "function", "name": "f"}]}, "tools", "unsupported_parameter"),
        ({"tool_choice": "required"}, "tool_choice", None),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice", None),
    ],
)
async def test_what_is_wrong_is_named(
    client: httpx.AsyncClient, fields: dict[str, Any], param: str, code: str | None
) -> None:
    response = await client.post(PATH, json={"input": "x", **fields})
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, param, code)


@pytest.mark.parametrize("is_stream", [False, True])
async def test_an_answer_can_be_held_to_a_schema(
    client: httpx.AsyncClient, engine: FakeEngine, is_stream: bool
) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    form = {"type": "json_schema", "name": "thing", "schema": schema, "strict": True}
    engine.answer = '{"a": 1}'
    body = {"input": "x", "text": {"format": form}, "stream": is_stream}
    response = await client.post(PATH, json=body)
    answer = read_events(response.text)[-1]["response"] if is_stream else response.json()
    assert Response.model_validate(answer, strict=True).output_text == engine.answer
    assert answer["text"] == {"format": {**form, "description": None}}
    [request] = engine.requests
    grammar = request.sampling.grammar
    assert grammar is not None and json.loads(grammar.text) == schema

    await client.post(PATH, json={"input": "x", "text": {"format": {"type": "json_object"}}})
    grammar = engine.requests[-1].sampling.grammar
    assert grammar is not None and json.loads(grammar.text) == {"type": "object"}


async def test_a_schema_that_cannot_be_used_is_named(client: httpx.AsyncClient) -> None:
    form = {"type": "json_schema", "name": "thing", "schema": {"not": {}}}
    response = await client.post(PATH, json={"input": "x", "text": {"format": form}})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "text.format.schema")


async def test_an_input_that_is_too_long_is_cut_where_that_is_wanted(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    await client.post(PATH, json={"input": "a" * 300, "truncation": "auto"})
    assert 0 < len(engine.requests[0].prompt_token_ids) < 200
