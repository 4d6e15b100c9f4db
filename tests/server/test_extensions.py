"""Parameters beyond OpenAI's own: vLLM's, and time limits."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from dijiang_runtime.errors import QueueTimeoutError
from dijiang_runtime.request import FinishReason, Request, RequestOutput
from dijiang_runtime.tokenizer import Tokenizer
from server.bad_words import tokenize_words
from tests.conftest import make_tokenizer
from tests.server.asgi import events
from tests.server.fake_engine import FakeEngine

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Once"}]


async def complete(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    response = await client.post(COMPLETIONS, json={"prompt": "Once upon", **body})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def test_parameters_of_the_sampler_reach_the_engine(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    await complete(client, allowed_token_ids=[7, 3, 7], bad_words=["ab"], priority=-4)
    [request] = engine.requests
    assert request.sampling.allowed_token_ids == (3, 7)
    assert request.sampling.bad_words == (tuple(engine.tokenizer.encode("ab")),)
    assert request.priority == -4


def test_a_bad_word_has_two_spellings_where_the_tokenizer_tells_them_apart(tmp_path: Path) -> None:
    make_tokenizer().save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path)
    words = tokenize_words(["the", "fox", " the"], tokenizer)
    plain, spaced = tokenizer.encode("the"), tokenizer.encode(" the")
    assert plain != spaced[-len(plain) :]
    assert {tuple(plain), tuple(spaced)} <= set(words)
    assert len(set(words)) == len(words)


async def test_best_of_returns_the_likeliest_in_order(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    logprobs = {0: -2.0, 1: -0.5, 2: -3.0, 3: -1.0}

    def script(request: Request) -> list[RequestOutput | Exception]:
        index = int(request.request_id.rpartition("-")[2])
        assert request.sampling.logprobs == 0
        position = engine.position(65, 0)
        chosen = engine.logprob(65, logprobs[index])
        return [
            RequestOutput(
                request_id=request.request_id,
                text=f"answer {index}",
                token_ids=(65,) * (index + 1),
                logprobs=(type(position)(chosen, ()),) * (index + 1),
                finish_reason=FinishReason.STOP,
                num_output_tokens=index + 1,
            )
        ]

    engine.script = script
    answer = await complete(client, n=2, best_of=4, seed=7)

    assert [c["text"] for c in answer["choices"]] == ["answer 1", "answer 3"]
    assert [c["index"] for c in answer["choices"]] == [0, 1]
    assert [c["logprobs"] for c in answer["choices"]] == [None, None]
    assert [r.sampling.seed for r in engine.requests] == [7, 8, 9, 10]
    # All that was computed, and the prompt once.
    assert answer["usage"]["completion_tokens"] == 1 + 2 + 3 + 4
    assert answer["usage"]["prompt_tokens"] == 9


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({"truncate_prompt_tokens": 4}, "upon"),
        ({"truncate_prompt_tokens": 4, "truncation_side": "right"}, "Once"),
        ({"truncate_prompt_tokens": 400}, "Once upon"),
        ({"truncate_prompt_tokens": -1}, "Once upon"),
        ({"truncate_prompt_tokens": -1, "max_tokens": 196}, "upon"),
    ],
    ids=str,
)
@pytest.mark.parametrize("is_ids", [False, True], ids=["text", "ids"])
async def test_a_long_prompt_is_cut_to_what_is_wanted(
    client: httpx.AsyncClient, engine: FakeEngine, fields: dict[str, Any], kept: str, is_ids: bool
) -> None:
    prompt = engine.tokenizer.encode("Once upon") if is_ids else "Once upon"
    answer = await complete(client, prompt=prompt, echo=True, **fields)
    assert engine.tokenizer.decode(engine.requests[0].prompt_token_ids) == kept
    assert answer["choices"][0]["text"] == kept + " there was a cat"
    assert answer["usage"]["prompt_tokens"] == len(kept)


async def test_a_chat_that_does_not_fit_is_cut_and_leaves_room_for_an_answer(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    messages = [{"role": "user", "content": "x" * 300}]
    body = {"messages": messages, "truncate_prompt_tokens": -1}
    assert (await client.post(CHAT, json=body)).status_code == 200
    assert (await client.post(CHAT, json={**body, "max_tokens": 5})).status_code == 200
    assert [len(r.prompt_token_ids) for r in engine.requests] == [100, 195]


@pytest.mark.parametrize("is_stream", [False, True], ids=["json", "sse"])
async def test_token_ids_come_back(
    client: httpx.AsyncClient, engine: FakeEngine, is_stream: bool
) -> None:
    wanted = {"return_token_ids": True, "stream": is_stream}
    prompt, answer = (engine.tokenizer.encode(text) for text in ("Hi", engine.answer))

    response = await client.post(COMPLETIONS, json={"prompt": "Hi", **wanted})
    parts = events(response.text)[:-1] if is_stream else [response.json()]
    choices = [choice for part in parts for choice in part["choices"]]
    assert [choice.get("prompt_token_ids") for choice in choices] == [
        prompt,
        *[None] * (len(choices) - 1),
    ]
    assert [i for choice in choices for i in choice["token_ids"]] == answer

    response = await client.post(CHAT, json={"messages": MESSAGES[:1], **wanted})
    parts = events(response.text)[:-1] if is_stream else [response.json()]
    assert parts[0]["prompt_token_ids"] == prompt
    ids = [i for part in parts for choice in part["choices"] for i in choice.get("token_ids", ())]
    assert ids == answer


@pytest.mark.parametrize("is_stream", [False, True], ids=["json", "sse"])
async def test_tokens_of_logprobs_may_be_spelled_as_ids(
    client: httpx.AsyncClient, engine: FakeEngine, is_stream: bool
) -> None:
    wanted = {"return_tokens_as_token_ids": True, "stream": is_stream}
    body = {"prompt": "Hi", "echo": True, "logprobs": 1, "max_tokens": 1, **wanted}
    response = await client.post(COMPLETIONS, json=body)
    parts = events(response.text)[:-1] if is_stream else [response.json()]
    found = [part["choices"][0]["logprobs"] for part in parts]
    ids = [*engine.tokenizer.encode("Hi"), engine.tokenizer.encode(engine.answer)[0]]
    assert [t for part in found for t in part["tokens"]] == [f"token_id:{i}" for i in ids]
    assert [offset for part in found for offset in part["text_offset"]] == [0, 1, 2]
    assert all(
        key.startswith("token_id:")
        for part in found
        for alternatives in part["top_logprobs"]
        for key in alternatives or ()
    )

    chat = {"messages": MESSAGES[:1], "logprobs": True, "top_logprobs": 1, "max_tokens": 1}
    response = await client.post(CHAT, json={**chat, **wanted})
    parts = events(response.text)[:-1] if is_stream else [response.json()]
    [entry] = [
        entry
        for part in parts
        for choice in part["choices"]
        if choice["logprobs"]
        for entry in choice["logprobs"]["content"]
    ]
    assert entry["token"] == f"token_id:{ids[-1]}"
    assert entry["top_logprobs"][0]["token"] == "token_id:0"


@pytest.mark.parametrize("is_stream", [False, True], ids=["json", "sse"])
@pytest.mark.parametrize(
    ("options", "fields"),
    [({"max_request_seconds": 0.05}, {}), ({}, {"timeout": 0.05})],
    ids=["server", "request"],
)
async def test_an_answer_that_takes_too_long_ends_with_an_error(
    client_for: Any,
    engine: FakeEngine,
    options: dict[str, float],
    fields: dict[str, float],
    is_stream: bool,
) -> None:
    engine.gate.clear()
    client = client_for(**options)
    response = await asyncio.wait_for(
        client.post(COMPLETIONS, json={"prompt": "x", "stream": is_stream, **fields}), 5
    )
    assert all(stream.aborted for stream in engine.streams)
    if is_stream:
        text = response.text
        assert "[DONE]" not in text
        error = json.loads(text.removeprefix("data: "))["error"]
    else:
        assert response.status_code == 504
        # The client has chosen how long to wait; its library must not begin anew.
        assert response.headers["x-should-retry"] == "false"
        error = response.json()["error"]
    assert error["code"] == "deadline_exceeded"
    metrics = (await client.get("/metrics")).text
    assert 'dijiang_requests_finished_total{outcome="error",path="/v1/completions"} 1.0' in metrics


async def test_no_limit_is_no_limit(client_for: Any, engine: FakeEngine) -> None:
    client = client_for(max_request_seconds=0.0, max_queue_seconds=0.0)
    await complete(client)
    assert engine.requests[0].max_queue_seconds is None


async def test_a_request_that_waits_too_long_is_told_to_come_back(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.script = lambda request: [QueueTimeoutError()]
    response = await client.post(COMPLETIONS, json={"prompt": "x"})
    assert engine.requests[0].max_queue_seconds == 30.0
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) >= 1
    assert response.json()["error"]["code"] == "queue_timeout"
    metrics = (await client.get("/metrics")).text
    assert 'admission_rejections_total{model_name="tiny",reason="queue_timeout"} 1.0' in metrics


async def test_without_special_tokens_a_prompt_is_its_text_alone(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    await complete(client, add_special_tokens=False)
    assert engine.requests[0].prompt_token_ids == tuple(engine.tokenizer.encode("Once upon"))


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"best_of": 2, "stream": True}, "best_of"), ({"prompt": ["a"] * 5, "best_of": 8}, "prompt")],
    ids=["stream", "too many"],
)
async def test_best_of_has_limits(
    client: httpx.AsyncClient, engine: FakeEngine, fields: dict[str, Any], param: str
) -> None:
    response = await client.post(COMPLETIONS, json={"prompt": "x", **fields})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert engine.requests == []
