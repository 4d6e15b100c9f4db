"""A chat template that comes with a request."""

import httpx
import pytest

from tests.server.conftest import ClientFor
from tests.server.fake_engine import FakeEngine

MESSAGES = [{"role": "user", "content": "Hi <|endoftext|>"}]
SHOUTED = "{% for m in messages %}{{ m.role }}: {{ m.content | upper }}{{ eos_token }}{% endfor %}"
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


@pytest.fixture
def trusting(client_for: ClientFor) -> httpx.AsyncClient:
    return client_for(trust_request_chat_template=True)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/tokenize"])
async def test_a_template_of_a_stranger_is_refused(
    client: httpx.AsyncClient, engine: FakeEngine, path: str
) -> None:
    body = {"messages": MESSAGES, "chat_template": SHOUTED}
    answer = await client.post(path, json=body)
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert (error["param"], error["code"]) == ("chat_template", "unsupported_parameter")
    assert "--trust-request-chat-template" in error["message"]
    assert engine.requests == []


async def test_a_trusted_template_makes_the_prompt_and_texts_stay_texts(
    trusting: httpx.AsyncClient, engine: FakeEngine
) -> None:
    body = {"messages": MESSAGES, "chat_template": SHOUTED}
    assert (await trusting.post("/v1/chat/completions", json=body)).status_code == 200
    [request] = engine.requests
    # The end that the template wrote is a token, the one that the user wrote is eleven and more.
    text = "user: HI <|ENDOFTEXT|>"
    expected = engine.tokenizer.encode(text, add_special_tokens=False, allow_special=False)
    assert request.prompt_token_ids == (*expected, 256)
    tokens = (await trusting.post("/tokenize", json=body)).json()["tokens"]
    assert tuple(tokens) == request.prompt_token_ids


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"chat_template": "{% for"}, "chat_template"),
        ({"chat_template": ""}, "chat_template"),
        ({"chat_template": "x" * 65_537}, "chat_template"),
        ({"chat_template": 7}, "chat_template"),
        ({"chat_template": "{{ messages.x.y }}"}, "messages"),
        ({"chat_template": "{{ raise_exception('no') }}"}, "messages"),
        ({"chat_template": "{{ ().__class__.__bases__ }}"}, "messages"),
        ({"chat_template": SHOUTED, "tools": [WEATHER]}, "tools"),
    ],
    ids=str,
)
async def test_a_template_that_is_no_good_is_the_client_s_fault(
    trusting: httpx.AsyncClient, engine: FakeEngine, changes: dict[str, object], param: str
) -> None:
    answer = await trusting.post("/v1/chat/completions", json={"messages": MESSAGES, **changes})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert engine.requests == []
