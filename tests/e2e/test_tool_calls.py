"""Tools and schemas with the official library, a real engine, and a random model that must obey."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
from openai.types.chat import ChatCompletionChunk
from pydantic import BaseModel, ConfigDict

from tests.e2e.server_process import ServerProcess

TEMPLATE = (
    "{% for tool in tools or [] %}{{ tool.function.name }} <tool_call> {% endfor %}"
    "{% for m in messages %}{{ m.content }}\n{% endfor %}"
)


class City(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: Literal["Oslo", "Rome"]
    is_far: bool


class Count(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: Literal["fox", "dog"]


TOOLS: list[Any] = [
    openai.pydantic_function_tool(City, name="city"),
    openai.pydantic_function_tool(Count, name="count"),
]
MODELS: dict[str, type[BaseModel]] = {"city": City, "count": Count}
ASK: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "the fox"}],
    "max_tokens": 400,
}


@pytest.fixture(scope="module")
def client(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    folder = tmp_path_factory.mktemp("caller") / "tiny"
    shutil.copytree(tiny_model, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    with ServerProcess(folder) as process:
        url = process.wait_ready() + "/v1"
        with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
            yield client


@pytest.mark.parametrize("name", [None, "city", "count"], ids=["required", "city", "count"])
@pytest.mark.parametrize("seed", range(4))
def test_a_call_that_must_come_comes_and_its_arguments_match(
    client: openai.OpenAI, name: str | None, seed: int
) -> None:
    named = {"type": "function", "function": {"name": name}}
    wanted = {
        **ASK,
        "tools": TOOLS,
        "tool_choice": named if name else "required",
        "parallel_tool_calls": False,
        "seed": seed,
    }
    [choice] = client.chat.completions.create(**wanted).choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    [call] = choice.message.tool_calls
    assert name in (None, call.function.name)
    MODELS[call.function.name].model_validate_json(call.function.arguments)

    pieces, found = "", []
    for chunk in client.chat.completions.create(**wanted, stream=True):
        ChatCompletionChunk.model_validate_json(chunk.model_dump_json(), strict=True)
        for delta in chunk.choices[0].delta.tool_calls or ():
            found += [delta.function.name] if delta.id else []
            pieces += delta.function.arguments or ""
    assert (found, pieces) == ([call.function.name], call.function.arguments)


def test_the_library_parses_calls_and_schemas(client: openai.OpenAI) -> None:
    parsed = client.chat.completions.parse(**ASK, response_format=City)
    assert isinstance(parsed.choices[0].message.parsed, City)
    called = client.chat.completions.parse(**ASK, tools=TOOLS, tool_choice="required")
    for call in called.choices[0].message.tool_calls:
        assert isinstance(call.function.parsed_arguments, MODELS[call.function.name])


def test_responses_call_and_keep_to_schemas_as_chats_do(client: openai.OpenAI) -> None:
    wanted: dict[str, Any] = {"model": "tiny", "input": "the fox", "max_output_tokens": 400}
    parsed = client.responses.parse(**wanted, text_format=City)
    assert isinstance(parsed.output_parsed, City)

    tools: list[Any] = [
        {"type": "function", "name": name, "parameters": model.model_json_schema(), "strict": True}
        for name, model in MODELS.items()
    ]
    called = {**wanted, "tools": tools, "tool_choice": "required", "temperature": 0}
    answer = client.responses.create(**called)
    assert answer.output and answer.status == "completed"
    for call in answer.output:
        assert call.type == "function_call"
        MODELS[call.name].model_validate_json(call.arguments)
    with client.responses.stream(**called) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_response()
    assert {"response.function_call_arguments.delta", "response.completed"} <= kinds
    calls = [(call.name, call.arguments) for call in answer.output]
    assert [(call.name, call.arguments) for call in final.output] == calls

    results = [
        {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
        for call in answer.output
    ]
    items: list[Any] = [{"role": "user", "content": "the fox"}, *answer.output, *results]
    assert client.responses.create(**{**called, "input": items}).output
