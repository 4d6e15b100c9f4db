"""Server-sent events: what a stream says, and how it ends."""

import asyncio
from typing import Any

import httpx
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletionChunk

from dijiang_runtime.errors import EngineDeadError, NumericalError
from dijiang_runtime.request import FinishReason, RequestOutput
from server.streaming import EventTemplate, event
from tests.server.asgi import Visitor, events
from tests.server.fake_engine import FakeEngine

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "stream": True},
    COMPLETIONS: {"model": "tiny", "prompt": "Hi", "stream": True},
}
both = pytest.mark.parametrize("path", [CHAT, COMPLETIONS], ids=["chat", "completions"])


async def stream(client: httpx.AsyncClient, path: str, **body: Any) -> list[Any]:
    response = await client.post(path, json={**BODIES[path], **body})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    return events(response.text)


def text_of(chunk: dict[str, Any]) -> str:
    choice = chunk["choices"][0]
    text = choice["text"] if "text" in choice else choice["delta"].get("content")
    return text or ""


@both
async def test_chunks_are_what_the_openai_library_expects(
    client: httpx.AsyncClient, path: str
) -> None:
    *chunks, done = await stream(client, path, stream_options={"include_usage": True})

    assert done == "[DONE]"
    for chunk in chunks:
        if path == CHAT:
            ChatCompletionChunk.model_validate(chunk, strict=True)
        elif chunk["choices"][:1] and chunk["choices"][0]["finish_reason"]:
            # The library's type demands a finish reason, which only the last chunk has.
            Completion.model_validate(chunk, strict=True)
    assert len({chunk["id"] for chunk in chunks}) == 1


@both
async def test_an_event_may_bring_several_tokens(client: httpx.AsyncClient, path: str) -> None:
    wanted = {"n": 2, "max_tokens": 9, "return_token_ids": True}
    chunks = (await stream(client, path, stream_interval=4, **wanted))[:-1]
    for index in range(2):
        parts = [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]
        sizes = [len(part["token_ids"]) for part in parts if "token_ids" in part]
        assert sizes == [1, 4, 4, 0]
        text = "".join(text_of(c) for c in chunks if c["choices"][0]["index"] == index)
        assert text == " there was a cat"[:9]


@both
@pytest.mark.parametrize("n", [1, 3])
async def test_the_deltas_of_a_choice_add_up_to_the_whole_answer(
    client: httpx.AsyncClient, path: str, n: int
) -> None:
    chunks = (await stream(client, path, n=n, max_tokens=9))[:-1]
    for index in range(n):
        own = [chunk for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert "".join(map(text_of, own)) == " there wa"
        reasons = [chunk["choices"][0]["finish_reason"] for chunk in own]
        assert reasons == [None] * (len(own) - 1) + ["length"]


async def test_a_chat_begins_with_the_role(client: httpx.AsyncClient) -> None:
    chunks = await stream(client, CHAT)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "role" not in chunks[1]["choices"][0]["delta"]


@both
async def test_no_chunk_is_empty_but_the_first_and_the_last(
    client: httpx.AsyncClient, engine: FakeEngine, path: str
) -> None:
    def held(request: Any) -> list[RequestOutput]:
        """The first two tokens give no text yet."""
        outputs: list[Any] = engine.tell(request)
        pieces = ["", "", " th"] + [output.text for output in outputs[3:]]
        return [
            RequestOutput(
                request_id=output.request_id,
                text=text,
                token_ids=output.token_ids,
                logprobs=output.logprobs,
                finish_reason=output.finish_reason,
                num_output_tokens=output.num_output_tokens,
            )
            for output, text in zip(outputs, pieces, strict=True)
        ]

    engine.script = held
    wanted = {"logprobs": True} if path == CHAT else {"logprobs": 0}
    chunks = (await stream(client, path, **wanted))[:-1]
    inner = chunks[1:-1] if path == CHAT else chunks[:-1]
    assert all(text_of(chunk) for chunk in inner)
    # The logprobs of the held tokens come with the text that they became.
    logprobs = inner[0]["choices"][0]["logprobs"]
    assert len(logprobs["content"] if path == CHAT else logprobs["tokens"]) == 3


@both
async def test_usage_is_the_last_chunk_and_only_on_request(
    client: httpx.AsyncClient, path: str
) -> None:
    without = await stream(client, path)
    assert all("usage" not in chunk for chunk in without[:-1])

    *chunks, last, _ = await stream(
        client, path, max_tokens=4, stream_options={"include_usage": True}
    )
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 4
    assert all(chunk["usage"] is None for chunk in chunks)


@both
async def test_usage_may_come_with_every_chunk(client: httpx.AsyncClient, path: str) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = (await stream(client, path, max_tokens=3, stream_options=options))[:-1]
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts) and counts[-1] == 3


async def test_echo_comes_first(client: httpx.AsyncClient) -> None:
    chunks = await stream(client, COMPLETIONS, prompt=["ab", "c"], echo=True, max_tokens=1)
    texts = {0: "", 1: ""}
    for chunk in chunks[:-1]:
        texts[chunk["choices"][0]["index"]] += text_of(chunk)
    assert texts == {0: "ab ", 1: "c "}


async def test_streamed_logprobs_equal_those_of_the_whole_answer(
    client: httpx.AsyncClient,
) -> None:
    wanted = {"logprobs": 2, "echo": True, "max_tokens": 5}
    chunks = (await stream(client, COMPLETIONS, **wanted))[:-1]
    body = {**BODIES[COMPLETIONS], **wanted, "stream": False}
    whole = (await client.post(COMPLETIONS, json=body)).json()["choices"][0]["logprobs"]
    parts = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    for name, expected in whole.items():
        assert [entry for part in parts for entry in part[name]] == expected


@both
@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NumericalError(), "numerical_error"),
        (EngineDeadError(), "engine_dead"),
        (RuntimeError("secret /path"), "internal_error"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("n", [1, 2])
async def test_a_stream_that_fails_ends_with_an_error_and_no_done(
    client: httpx.AsyncClient, engine: FakeEngine, path: str, error: Exception, code: str, n: int
) -> None:
    engine.script = lambda request: [*engine.tell(request)[:2], error]
    *_, last = await stream(client, path, n=n)
    assert last["error"]["code"] == code
    assert "secret" not in last["error"]["message"]
    assert all(stream.aborted or stream.num_read == 3 for stream in engine.streams)


@both
async def test_an_answer_the_engine_aborted_is_an_error(
    client: httpx.AsyncClient, engine: FakeEngine, path: str
) -> None:
    engine.script = lambda request: [
        RequestOutput(request_id=request.request_id, finish_reason=FinishReason.ABORT)
    ]
    assert (await stream(client, path))[-1]["error"]["code"] == "request_failed"


async def test_proxies_are_asked_not_to_store_or_gather(client: httpx.AsyncClient) -> None:
    response = await client.post(CHAT, json=BODIES[CHAT])
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["x-accel-buffering"] == "no"
    assert "content-length" not in response.headers


@both
@pytest.mark.parametrize("is_stream", [True, False], ids=["sse", "json"])
async def test_a_client_that_leaves_aborts_its_sequences(
    app_for: Any, engine: FakeEngine, path: str, is_stream: bool
) -> None:
    app = app_for()
    engine.gate.clear()
    visitor = Visitor(app, path, {**BODIES[path], "stream": is_stream, "n": 2})
    async with asyncio.timeout(5):
        while len(engine.streams) < 2:
            await asyncio.sleep(0)

        visitor.leave()
        await visitor.task
        await app.state.context.lifecycle.wait_until_idle()

    assert [stream.aborted for stream in engine.streams] == [True, True]


async def test_a_client_that_leaves_midway_aborts_its_sequence(
    app_for: Any, engine: FakeEngine
) -> None:
    visitor = Visitor(app_for(), CHAT, BODIES[CHAT])
    async with asyncio.timeout(5):
        await visitor.got_body.wait()
        visitor.may_send.clear()
        visitor.leave()
        visitor.may_send.clear()
        await visitor.task
    assert engine.streams[0].aborted


async def test_a_client_that_stops_reading_is_given_up(app_for: Any, engine: FakeEngine) -> None:
    visitor = Visitor(app_for(send_timeout_seconds=0.02), CHAT, BODIES[CHAT])
    async with asyncio.timeout(5):
        await visitor.got_body.wait()
        visitor.may_send.clear()
        await visitor.task
    assert engine.streams[0].aborted
    assert not visitor.is_complete


async def test_a_silent_stream_is_kept_alive_with_comments(
    app_for: Any, engine: FakeEngine
) -> None:
    engine.gate.clear()
    visitor = Visitor(app_for(sse_keep_alive_seconds=0.01), COMPLETIONS, BODIES[COMPLETIONS])
    async with asyncio.timeout(5):
        await visitor.got_body.wait()
        assert visitor.body.startswith(b": keep-alive\n\n")
        engine.gate.set()
        await visitor.task
    assert events(visitor.body)[-1] == "[DONE]"


@both
@pytest.mark.parametrize("is_stream", [True, False], ids=["sse", "json"])
async def test_what_still_runs_at_the_end_of_a_drain_ends_with_an_error(
    app_for: Any, engine: FakeEngine, path: str, is_stream: bool
) -> None:
    app = app_for()
    lifecycle = app.state.context.lifecycle
    engine.gate.clear()
    visitor = Visitor(app, path, {**BODIES[path], "stream": is_stream})
    async with asyncio.timeout(5):
        while not lifecycle.num_active:
            await asyncio.sleep(0)

        lifecycle.begin_drain()
        lifecycle.end_remaining()
        await visitor.task
        await lifecycle.wait_until_idle()

    assert visitor.is_complete
    assert b'"code":"server_draining"' in visitor.body
    assert engine.streams[0].aborted


async def test_running_streams_finish_while_the_server_drains(
    app_for: Any, engine: FakeEngine, client_for: Any
) -> None:
    app = app_for()
    lifecycle = app.state.context.lifecycle
    engine.gate.clear()
    visitor = Visitor(app, CHAT, BODIES[CHAT])
    async with asyncio.timeout(5):
        while not lifecycle.num_active:
            await asyncio.sleep(0)
        lifecycle.begin_drain()

        refused = await client_for(app).post(CHAT, json=BODIES[CHAT])
        engine.gate.set()
        await lifecycle.wait_until_idle()
        await visitor.task

    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "server_draining"
    assert int(refused.headers["retry-after"]) >= 1
    assert events(visitor.body)[-1] == "[DONE]"


@pytest.mark.parametrize("text", ["", "a", '"\\', "\n\x00\x7f", "é\u2028\U0001f98a"])
def test_an_event_from_a_template_is_the_event(text: str) -> None:
    def make(text: str) -> Any:
        return {"id": "a", "choices": [{"text": text, "index": 0}], "model": '"text"'}

    assert EventTemplate(make).event(text) == event(make(text))


async def test_tokens_that_are_ready_together_are_events_of_their_own_in_one_write(
    app_for: Any, engine: FakeEngine
) -> None:
    engine.num_at_once = 4
    visitor = Visitor(app_for(), COMPLETIONS, {**BODIES[COMPLETIONS], "max_tokens": 8})
    async with asyncio.timeout(5):
        await visitor.task
    writes = [m["body"] for m in visitor.received if m["type"] == "http.response.body"]
    assert [body.count(b"data: ") for body in writes][:2] == [4, 4]


async def test_a_client_that_stops_reading_is_not_sent_comments(
    app_for: Any, engine: FakeEngine
) -> None:
    app = app_for(send_timeout_seconds=0.1, sse_keep_alive_seconds=0.01)
    visitor = Visitor(app, CHAT, BODIES[CHAT])
    async with asyncio.timeout(5):
        await visitor.got_body.wait()
        visitor.may_send.clear()
        await visitor.task
    assert engine.streams[0].aborted
    assert b"keep-alive" not in visitor.body
