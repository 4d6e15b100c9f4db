"""`/v1/chat/completions`, answered by a fake engine."""

from typing import Any

import httpx
import pytest
from openai.types.chat import ChatCompletion

from tests.server.fake_engine import FakeEngine

URL = "/v1/chat/completions"
HELLO: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}]}


async def chat(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    response = await client.post(URL, json={**HELLO, **body})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def prompt_of(engine: FakeEngine) -> str:
    return engine.tokenizer.decode(engine.requests[0].prompt_token_ids, False)


async def test_an_answer_is_what_the_openai_library_expects(client: httpx.AsyncClient) -> None:
    answer = await chat(client, logprobs=True, top_logprobs=2, n=2)

    completion = ChatCompletion.model_validate(answer, strict=True)
    assert completion.object == "chat.completion"
    assert completion.id.startswith("chatcmpl-")
    assert [choice.index for choice in completion.choices] == [0, 1]
    choice = completion.choices[0]
    assert choice.message.role == "assistant"
    assert choice.message.content == " there was a cat"
    assert choice.logprobs is not None and choice.logprobs.content is not None
    assert len(choice.logprobs.content) == 16
    assert len(choice.logprobs.content[0].top_logprobs) == 2
    assert choice.logprobs.content[0].bytes == [32]


async def test_usage_counts_the_rendered_prompt(client: httpx.AsyncClient) -> None:
    answer = await chat(client, max_tokens=3)
    assert answer["usage"] == {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
    assert answer["choices"][0]["finish_reason"] == "length"


async def test_a_base_model_continues_the_messages_as_one_text(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    messages = [
        {"role": "system", "content": "A tale."},
        {"role": "user", "content": "Once"},
        {"role": "assistant", "content": " there was a cat."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "It"}, {"type": "text", "text": " ran"}],
        },
    ]
    await chat(client, messages=messages)
    assert prompt_of(engine) == "A tale.\n\nOnce there was a cat.\n\nIt ran"


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, 195),
        ({"max_tokens": 7}, 7),
        ({"max_completion_tokens": 9}, 9),
        ({"max_tokens": 7, "max_completion_tokens": 9}, 9),
    ],
)
async def test_the_length_of_an_answer(
    client: httpx.AsyncClient, engine: FakeEngine, limits: dict[str, int], expected: int
) -> None:
    await chat(client, **limits)
    assert engine.requests[0].sampling.max_tokens == expected


async def test_the_default_length_has_a_cap(client_for: Any, engine: FakeEngine) -> None:
    await chat(client_for(default_max_tokens=20))
    assert engine.requests[0].sampling.max_tokens == 20


async def test_logprobs_are_left_out_unless_asked_for(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    answer = await chat(client, logprobs=False)
    assert answer["choices"][0]["logprobs"] is None
    assert engine.requests[0].sampling.logprobs == -1


async def test_a_text_response_format_and_no_tools_are_no_constraint(
    client: httpx.AsyncClient,
) -> None:
    await chat(client, response_format={"type": "text"}, tools=[], tool_choice="none")


async def test_the_fingerprint_stays_while_the_server_runs(client: httpx.AsyncClient) -> None:
    answers = [await chat(client), await chat(client)]
    assert len({answer["system_fingerprint"] for answer in answers}) == 1
    assert len({answer["id"] for answer in answers}) == 2
