"""`/tokenize`, `/detokenize` and `/load`."""

from typing import Any

import httpx
import pytest

from tests.server.fake_engine import FakeEngine

MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "é"}]


async def test_a_text_is_told_as_tokens_and_back(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    text = "Once <|endoftext|> é"
    answer = (await client.post("/tokenize", json={"prompt": text})).json()
    # A special token in a text is the characters it consists of.
    assert answer == {
        "count": len(text.encode()),
        "max_model_len": 200,
        "tokens": engine.tokenizer.encode(text, allow_special=False),
        "token_strs": None,
    }
    back = await client.post("/detokenize", json={"tokens": answer["tokens"], "model": "tiny"})
    assert back.json() == {"prompt": text}
    assert engine.requests == []


async def test_special_tokens_are_part_of_a_text(client: httpx.AsyncClient) -> None:
    # The model has more rows than the tokenizer has tokens; those stand for nothing.
    answer = await client.post("/detokenize", json={"tokens": [256, 299]})
    assert answer.json() == {"prompt": "<|endoftext|>"}


async def test_no_tokens_are_no_text(client: httpx.AsyncClient) -> None:
    assert (await client.post("/detokenize", json={"tokens": []})).json() == {"prompt": ""}
    answer = (await client.post("/tokenize", json={"prompt": ""})).json()
    assert (answer["count"], answer["tokens"]) == (0, [])


async def test_tokens_are_spelled_as_in_the_vocabulary(client: httpx.AsyncClient) -> None:
    body = {"prompt": "a é", "return_token_strs": True}
    answer = (await client.post("/tokenize", json=body)).json()
    assert answer["token_strs"] == ["a", "Ġ", "Ã", "©"]


@pytest.mark.parametrize("options", [{}, {"continue_final_message": True}], ids=str)
async def test_a_conversation_has_the_tokens_of_its_chat(
    client: httpx.AsyncClient, engine: FakeEngine, options: dict[str, Any]
) -> None:
    body = {"messages": MESSAGES, **options}
    tokens = (await client.post("/tokenize", json=body)).json()["tokens"]
    await client.post("/v1/chat/completions", json=body)
    assert tuple(tokens) == engine.requests[0].prompt_token_ids


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "x", "messages": MESSAGES}, "prompt"),
        ("/tokenize", {"prompt": ["x"]}, "prompt"),
        ("/tokenize", {"prompt": "x" * 1601}, "prompt"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"messages": MESSAGES, "add_special_tokens": True}, "add_special_tokens"),
        ("/tokenize", {"messages": MESSAGES, "tools": [1]}, "tools"),
        ("/tokenize", {"prompt": "x", "return_token_strs": 1}, "return_token_strs"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [300]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": ["secret"]}, "tokens[0]"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_what_is_wrong_is_named(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], param: str
) -> None:
    response = await client.post(path, json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert "secret" not in response.text


@pytest.mark.parametrize(
    ("path", "body"), [("/tokenize", {"prompt": "x"}), ("/detokenize", {"tokens": [1]})]
)
async def test_the_model_must_be_the_one_and_loaded(
    client: httpx.AsyncClient, engine: FakeEngine, path: str, body: dict[str, Any]
) -> None:
    assert (await client.post(path, json={**body, "model": "other"})).status_code == 404
    engine.is_ready = False
    assert (await client.post(path, json=body)).status_code == 503


async def test_the_load_is_told(client: httpx.AsyncClient) -> None:
    assert (await client.get("/load")).json() == {
        "server_load": 3,
        "running": 1,
        "waiting": 2,
        "slots": 4,
        "slots_free": 1,
    }
