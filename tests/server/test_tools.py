"""Tools in a chat: what the prompt, the engine and the client see of them."""

import json
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from tokenizers import AddedToken, Tokenizer

from dijiang_runtime.request import GrammarKind
from server.app import create_app
from server.chat_template import PromptOptions
from server.config import ServerConfig
from server.protocol.chat import ChatMessage, plain_messages
from server.served_model import ServedModel
from tests.server import fake_engine
from tests.server.asgi import events
from tests.server.fake_engine import FakeEngine

URL = "/v1/chat/completions"

# The parts of Qwen 2.5's template that matter here.
HERMES = """\
{%- if tools %}<|im_start|>system
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<tool_call>{"name": <name>, "arguments": <args>}</tool_call><|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}
{%- for call in message.tool_calls or [] %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{%- endfor %}<|im_end|>
{% endfor %}"""

MISTRAL = HERMES.replace("<tool_call>", "[TOOL_CALLS]").replace("</tool_call>", "")

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}
OTHER = {"type": "function", "function": {"name": "add", "description": "Adds."}}
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 190}
ASK = {**HELLO, "tools": [TOOL, OTHER]}

ANSWER = (
    'Let me see.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
    '\n<tool_call>\n{"name": "add", "arguments": {}}\n</tool_call>'
)
CALLS = [("weather", '{"city": "Oslo"}'), ("add", "{}")]


def make_folder(model_folder: Path, folder: Path, template: str) -> Path:
    """A model that knows tools, and whose tokenizer has Mistral's special token."""
    settings = json.loads((model_folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").write_text(template)
    tokenizer = Tokenizer.from_file(str(model_folder / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken("[TOOL_CALLS]", special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def client_of(engine: FakeEngine, folder: Path, **options: Any) -> httpx.AsyncClient:
    app = create_app(engine, ServerConfig(model=folder, **options))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://server")


@pytest.fixture(autouse=True)
def long_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt that describes tools, in bytes, is longer than what the engine usually takes."""
    info = msgspec.structs.replace(fake_engine.INFO, max_model_len=2000)
    monkeypatch.setattr(fake_engine, "INFO", info)


@pytest.fixture
def caller(engine: FakeEngine, model_folder: Path, tmp_path: Path) -> httpx.AsyncClient:
    """A client of a model that calls tools the way Hermes does."""
    engine.answer = ANSWER
    return client_of(engine, make_folder(model_folder, tmp_path, HERMES))


async def test_calls_are_told_apart_from_text(caller: httpx.AsyncClient) -> None:
    response = await caller.post(URL, json={**ASK, "n": 2})
    assert response.status_code == 200, response.text
    answer = ChatCompletion.model_validate_json(response.content, strict=True)
    assert len(answer.choices) == 2
    for choice in answer.choices:
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content == "Let me see."
        calls = choice.message.tool_calls or []
        assert [(c.function.name, c.function.arguments) for c in calls] == CALLS  # type: ignore[union-attr]
    ids = {call.id for choice in answer.choices for call in choice.message.tool_calls or []}
    assert len(ids) == 4


async def test_a_stream_tells_each_call_once_and_its_arguments_in_pieces(
    caller: httpx.AsyncClient,
) -> None:
    response = await caller.post(URL, json={**ASK, "stream": True, "logprobs": True})
    *chunks, done = events(response.text)
    assert done == "[DONE]"
    content, found = "", list[dict[str, str]]()
    num_logprobs, num_deltas = 0, 0
    for chunk in chunks:
        ChatCompletionChunk.model_validate_json(json.dumps(chunk), strict=True)
        [choice] = chunk["choices"]
        content += choice["delta"].get("content") or ""
        num_logprobs += len((choice.get("logprobs") or {"content": ()})["content"])
        for call in choice["delta"].get("tool_calls", ()):
            num_deltas += 1
            if "id" in call:
                assert call["type"] == "function" and call["index"] == len(found)
                found.append({"name": call["function"]["name"], "arguments": ""})
            else:
                assert call["index"] == len(found) - 1
                assert "name" not in call["function"]
            found[-1]["arguments"] += call["function"]["arguments"]
    assert content == "Let me see."
    assert [(call["name"], call["arguments"]) for call in found] == CALLS
    assert num_deltas > len(CALLS)
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    assert num_logprobs == len(ANSWER)


async def test_one_call_where_parallel_ones_are_not_wanted(caller: httpx.AsyncClient) -> None:
    answer = (await caller.post(URL, json={**ASK, "parallel_tool_calls": False})).json()
    calls = answer["choices"][0]["message"]["tool_calls"]
    assert [call["function"]["name"] for call in calls] == ["weather"]


@pytest.mark.parametrize("ignored", [{"tool_choice": "none"}, {"tools": None}])
async def test_without_tools_an_answer_is_text(
    caller: httpx.AsyncClient, ignored: dict[str, Any]
) -> None:
    answer = (await caller.post(URL, json={**ASK, **ignored})).json()
    [choice] = answer["choices"]
    assert choice["message"]["content"] == ANSWER
    assert "tool_calls" not in choice["message"]
    assert choice["finish_reason"] == "stop"


async def test_an_answer_that_is_cut_inside_a_call_ends_with_length(
    caller: httpx.AsyncClient,
) -> None:
    size = ANSWER.index("Oslo")
    answer = (await caller.post(URL, json={**ASK, "max_tokens": size})).json()
    [choice] = answer["choices"]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"city": "'


async def test_the_template_is_told_of_tools_and_of_earlier_calls(
    caller: httpx.AsyncClient, tmp_path: Path
) -> None:
    call = {"name": "weather", "arguments": '{"city": "Oslo <|im_end|>"}'}
    history = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": call}]},
        {"role": "tool", "tool_call_id": "1", "content": "rain"},
    ]
    response = await caller.post(URL, json={**ASK, "max_tokens": 1, "messages": history})
    assert response.status_code == 200, response.text
    model = ServedModel.load(tmp_path, ("tiny",))
    plain = plain_messages([ChatMessage(**m) for m in history], max_messages=9)  # type: ignore[arg-type]
    parts = model.template.render(plain, PromptOptions(tools=[TOOL]))
    text = "".join(part.text for part in parts)
    assert json.dumps(TOOL) in text
    assert '{"name": "weather", "arguments": {"city": "Oslo <|im_end|>"}}' in text
    assert "<|im_start|>tool\nrain<|im_end|>" in text
    # What somebody typed is no special token.
    assert [part.text for part in parts if not part.allow_special] == ["<|im_end|>"]


@pytest.mark.parametrize(
    ("choice", "has_grammar"),
    [
        ("auto", False),
        ("required", True),
        ({"type": "function", "function": {"name": "weather"}}, True),
    ],
)
async def test_a_call_that_must_come_is_held_by_a_grammar(
    caller: httpx.AsyncClient, engine: FakeEngine, choice: Any, has_grammar: bool
) -> None:
    body = {**ASK, "tool_choice": choice, "max_tokens": 1}
    response = await caller.post(URL, json=body)
    assert response.status_code == 200, response.text
    grammar = engine.requests[0].sampling.grammar
    assert (grammar is not None) == has_grammar
    if grammar is not None:
        assert grammar.kind is GrammarKind.LARK
        assert ('add\\"' in grammar.text) == (choice == "required")


async def test_strict_arguments_and_schemas_of_answers_are_held_too(
    caller: httpx.AsyncClient, engine: FakeEngine
) -> None:
    strict = {**TOOL, "function": {**TOOL["function"], "strict": True}}  # type: ignore[dict-item]
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": PARAMETERS}}
    for more in ({"tools": [strict]}, {"response_format": form}):
        response = await caller.post(URL, json={**ASK, **more, "max_tokens": 1})
        assert response.status_code == 200, response.text
        grammar = engine.requests[-1].sampling.grammar
        assert grammar is not None and grammar.kind is GrammarKind.LARK


async def test_a_special_token_that_begins_calls_is_shown(
    engine: FakeEngine, model_folder: Path, tmp_path: Path
) -> None:
    engine.answer = '[TOOL_CALLS] [{"name": "add", "arguments": {}}]'
    caller = client_of(engine, make_folder(model_folder, tmp_path, MISTRAL))
    answer = (await caller.post(URL, json={**ASK, "tool_choice": "required"})).json()
    [call] = answer["choices"][0]["message"]["tool_calls"]
    assert call["function"] == {"name": "add", "arguments": "{}"}
    assert len(call["id"]) == 9 and call["id"].isalnum()
    sampling = engine.requests[0].sampling
    assert sampling.shown_token_ids == (259,)
    assert sampling.grammar is not None and "<[259]>" in sampling.grammar.text


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [TOOL, TOOL]}, "tools[1].function.name"),
        ({"tools": [TOOL] * 129}, "tools"),
        ({"tool_choice": "some"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice"),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "parameters": {"not": {}}}}]}
            | {"tool_choice": "required"},
            "tools",
        ),
        (
            {"tool_choice": "required", "response_format": {"type": "json_object"}},
            "response_format",
        ),
        ({"structured_outputs": {"regex": "a"}}, "structured_outputs.regex"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "assistant"}]}, "messages[0].content"),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "tool_calls": [{"id": "1", "function": {"name": "a", "arguments": "["}}],
                    }
                ]
            },
            "messages[0].tool_calls[0].function.arguments",
        ),
    ],
)
async def test_what_is_wrong_with_tools_is_said(
    caller: httpx.AsyncClient, engine: FakeEngine, body: dict[str, Any], param: str
) -> None:
    response = await caller.post(URL, json={**ASK, **body, "max_tokens": 1})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert engine.requests == []


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (ASK, "tools"),
        (
            {**HELLO, "messages": [{"role": "tool", "tool_call_id": "1", "content": "x"}]},
            "messages[0].role",
        ),
    ],
)
async def test_a_template_that_knows_no_tools_is_a_400_that_says_what_to_do(
    client: httpx.AsyncClient, body: dict[str, Any], param: str
) -> None:
    response = await client.post(URL, json=body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param
    assert "chat template does not know" in error["message"]
    assert (await client.post(URL, json={**ASK, "tool_choice": "none"})).status_code == 200


async def test_the_operator_may_choose_the_parser(
    engine: FakeEngine, model_folder: Path, tmp_path: Path
) -> None:
    folder = make_folder(model_folder, tmp_path, HERMES)
    response = await client_of(engine, folder, tool_call_parser="none").post(URL, json=ASK)
    assert response.status_code == 400
    engine.answer = '{"name": "add", "parameters": {}}'
    chosen = client_of(engine, folder, tool_call_parser="llama3_json")
    answer = (await chosen.post(URL, json=ASK)).json()
    assert answer["choices"][0]["finish_reason"] == "tool_calls"
