"""Tools in `/v1/responses`: items and events as OpenAI's types have them."""

from pathlib import Path
from typing import Any

import httpx
import pytest
from openai.types.responses import Response, ResponseFunctionToolCall, ResponseOutputMessage

from dijiang_runtime.request import GrammarKind
from tests.server.fake_engine import FakeEngine
from tests.server.test_responses import read_events
from tests.server.test_tools import (
    ANSWER,
    CALLS,
    HERMES,
    PARAMETERS,
    client_of,
    long_context,
    make_folder,
)

__all__ = ["long_context"]

URL = "/v1/responses"
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "name": "weather", "parameters": PARAMETERS},
    {"type": "function", "name": "add", "description": "Adds.", "strict": False},
]
CHAT_TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {k: v for k, v in tool.items() if k != "type"}}
    for tool in TOOLS
]
ASK: dict[str, Any] = {"input": "Hi", "tools": TOOLS, "max_output_tokens": 190}


@pytest.fixture
def caller(engine: FakeEngine, model_folder: Path, tmp_path: Path) -> httpx.AsyncClient:
    """A client of a model that calls tools the way Hermes does."""
    engine.answer = ANSWER
    return client_of(engine, make_folder(model_folder, tmp_path, HERMES))


def without_ids(answer: dict[str, Any]) -> dict[str, Any]:
    output = [{**item, "id": None, "call_id": None} for item in answer["output"]]
    return {**answer, "id": None, "created_at": None, "completed_at": None, "output": output}


async def test_text_and_calls_are_items_in_the_order_in_which_they_came(
    caller: httpx.AsyncClient,
) -> None:
    answer = (await caller.post(URL, json=ASK)).json()
    response = Response.model_validate(answer, strict=True)
    assert response.status == "completed" and response.output_text == "Let me see."
    message, *calls = response.output
    assert isinstance(message, ResponseOutputMessage)
    found = []
    for call in calls:
        assert isinstance(call, ResponseFunctionToolCall) and call.status == "completed"
        found.append((call.name, call.arguments))
    assert found == CALLS
    ids = [item.id for item in response.output]
    assert len(set(ids)) == 3 and [str(i).partition("-")[0] for i in ids] == ["msg", "fc", "fc"]
    assert answer["tools"] == [
        {"description": None, "strict": False, **TOOLS[0]},
        {"parameters": None, **TOOLS[1]},
    ]


async def test_a_stream_opens_and_closes_one_item_after_another(
    caller: httpx.AsyncClient,
) -> None:
    whole = (await caller.post(URL, json=ASK)).json()
    events = read_events((await caller.post(URL, json={**ASK, "stream": True})).text)
    kinds = list(dict.fromkeys((e["type"], e.get("output_index")) for e in events))
    assert kinds == [
        ("response.created", None),
        ("response.in_progress", None),
        ("response.output_item.added", 0),
        ("response.content_part.added", 0),
        ("response.output_text.delta", 0),
        ("response.output_text.done", 0),
        ("response.content_part.done", 0),
        ("response.output_item.done", 0),
        *(
            (f"response.{kind}", index)
            for index in (1, 2)
            for kind in (
                "output_item.added",
                "function_call_arguments.delta",
                "function_call_arguments.done",
                "output_item.done",
            )
        ),
        ("response.completed", None),
    ]
    deltas = [e for e in events if e["type"] == "response.function_call_arguments.delta"]
    assert len(deltas) > 4
    for index, (name, arguments) in enumerate(CALLS, start=1):
        assert "".join(e["delta"] for e in deltas if e["output_index"] == index) == arguments
        of_item = [e for e in events if e.get("output_index") == index]
        assert of_item[0]["item"]["arguments"] == "" and of_item[0]["item"]["name"] == name
        assert of_item[-2]["arguments"] == of_item[-1]["item"]["arguments"] == arguments
        item_ids = {e["item"]["id"] if "item" in e else e["item_id"] for e in of_item}
        assert item_ids == {of_item[-1]["item"]["id"]}
    done = [e["item"] for e in events if e["type"] == "response.output_item.done"]
    assert events[-1]["response"]["output"] == done
    assert without_ids(events[-1]["response"]) == without_ids(whole)


async def test_an_answer_may_begin_with_a_call_and_be_cut_in_it(
    caller: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.answer = ANSWER.removeprefix("Let me see.")
    body = {**ASK, "max_output_tokens": len(engine.answer.partition("Os")[0]) + 2}
    answer = (await caller.post(URL, json=body)).json()
    [call] = Response.model_validate(answer, strict=True).output
    assert isinstance(call, ResponseFunctionToolCall)
    assert (call.status, call.arguments) == ("incomplete", '{"city": "Os')
    assert answer["status"] == "incomplete"
    events = read_events((await caller.post(URL, json={**body, "stream": True})).text)
    assert without_ids(events[-1]["response"]) == without_ids(answer)


async def test_an_empty_answer_is_an_empty_message(
    caller: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.answer = ""
    answer = (await caller.post(URL, json=ASK)).json()
    [message] = Response.model_validate(answer, strict=True).output
    assert isinstance(message, ResponseOutputMessage)
    events = read_events((await caller.post(URL, json={**ASK, "stream": True})).text)
    assert without_ids(events[-1]["response"]) == without_ids(answer)


@pytest.mark.parametrize(
    ("choice", "echo"),
    [("required", "required"), ({"type": "function", "name": "add"},) * 2, ("none", "none")],
    ids=["required", "named", "none"],
)
async def test_a_choice_is_that_of_a_chat(
    caller: httpx.AsyncClient, engine: FakeEngine, choice: Any, echo: Any
) -> None:
    answer = (await caller.post(URL, json={**ASK, "tool_choice": choice})).json()
    Response.model_validate(answer, strict=True)
    assert answer["tool_choice"] == echo
    chosen = {"type": "function", "function": {"name": "add"}}
    chat = {
        "messages": [{"role": "user", "content": "Hi"}],
        "tools": CHAT_TOOLS,
        "tool_choice": choice if isinstance(choice, str) else chosen,
        "max_tokens": 190,
    }
    await caller.post("/v1/chat/completions", json=chat)
    ours, theirs = (request.sampling for request in engine.requests)
    assert engine.requests[0].prompt_token_ids == engine.requests[1].prompt_token_ids
    assert ours.grammar == theirs.grammar
    kind = None if ours.grammar is None else ours.grammar.kind
    assert kind is (None if choice == "none" else GrammarKind.LARK)


async def test_calls_and_their_outputs_are_sent_back_as_they_came(
    caller: httpx.AsyncClient, engine: FakeEngine
) -> None:
    output = (await caller.post(URL, json=ASK)).json()["output"]
    results = [
        {"type": "function_call_output", "call_id": output[1]["call_id"], "output": "rain"},
        {
            "type": "function_call_output",
            "call_id": output[2]["call_id"],
            "output": [{"type": "input_text", "text": "3"}],
        },
    ]
    items = [{"role": "user", "content": "Hi"}, *output, *results]
    answer = await caller.post(URL, json={**ASK, "input": items})
    assert answer.status_code == 200, answer.text

    def call(item: dict[str, Any]) -> dict[str, Any]:
        function = {"name": item["name"], "arguments": item["arguments"]}
        return {"id": item["call_id"], "type": "function", "function": function}

    messages = [
        {"role": "user", "content": "Hi"},
        {
            "role": "assistant",
            "content": "Let me see.",
            "tool_calls": [call(item) for item in output[1:]],
        },
        {"role": "tool", "tool_call_id": output[1]["call_id"], "content": "rain"},
        {"role": "tool", "tool_call_id": output[2]["call_id"], "content": "3"},
    ]
    await caller.post("/v1/chat/completions", json={"messages": messages, "tools": CHAT_TOOLS})
    assert engine.requests[-1].prompt_token_ids == engine.requests[-2].prompt_token_ids


async def test_logprobs_do_not_go_together_with_tools(caller: httpx.AsyncClient) -> None:
    body = {**ASK, "include": ["message.output_text.logprobs"]}
    error = (await caller.post(URL, json=body)).json()["error"]
    assert (error["param"], error["code"]) == ("include", "unsupported_parameter")
    answer = await caller.post(URL, json={**body, "tool_choice": "none"})
    assert answer.status_code == 200
