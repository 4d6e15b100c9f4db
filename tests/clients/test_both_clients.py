"""What both clients offer, against a real server, and that they offer the same."""

import asyncio
import inspect
from typing import Any

import httpx
import pytest

from clients.async_client import AsyncClient
from clients.client import Client
from clients.messages import Delta, Message
from tests.e2e.server_process import wait_for

TALK = [Message("user", "the quick")]


def call(kind: str, server_url: str, method: str, *args: Any, **options: Any) -> Any:
    async def call_async() -> Any:
        async with AsyncClient(server_url) as client:
            return await getattr(client, method)(*args, **options)

    if kind == "async":
        return asyncio.run(call_async())
    with Client(server_url) as client:
        return getattr(client, method)(*args, **options)


both = pytest.mark.parametrize("kind", ["sync", "async"])


def test_the_two_have_the_same_methods() -> None:
    def methods(cls: type) -> dict[str, list[str]]:
        return {
            name: list(inspect.signature(member).parameters)
            for name, member in inspect.getmembers(cls, inspect.isfunction)
            if not name.startswith("_")
        }

    asynchronous = methods(AsyncClient)
    asynchronous["close"] = asynchronous.pop("aclose")
    assert methods(Client) == asynchronous


@both
def test_texts_become_tokens_and_tokens_texts(server_url: str, kind: str) -> None:
    tokens = call(kind, server_url, "tokenize", "the quick brown fox")
    assert len(tokens.ids) > 3 and tokens.max_model_len is not None
    assert call(kind, server_url, "detokenize", tokens.ids) == "the quick brown fox"
    assert (
        call(kind, server_url, "tokenize", TALK).ids
        == call(kind, server_url, "tokenize", "the quick").ids
    )


@both
def test_texts_become_vectors(server_url: str, kind: str) -> None:
    one, other, same = call(kind, server_url, "embed", ["the dog", "a fox", "the dog"])
    assert one == same != other and len(one) == len(other) > 8


@both
def test_the_server_tells_of_itself(server_url: str, kind: str) -> None:
    [model] = call(kind, server_url, "models")
    assert (model.id, call(kind, server_url, "model_name")) == ("tiny", "tiny")
    assert model.max_model_len == call(kind, server_url, "tokenize", "x").max_model_len
    assert call(kind, server_url, "metrics")["dijiang_state_slots"] == 4


@both
def test_an_answer_is_the_same_in_one_piece_and_in_many(server_url: str, kind: str) -> None:
    whole = call(kind, server_url, "chat", TALK, max_tokens=30, seed=5)
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage.completion_tokens == 30

    async def stream() -> list[Delta]:
        async with AsyncClient(server_url) as client:
            stream = await client.stream_chat(TALK, max_tokens=30, seed=5)
            return [delta async for delta in stream]

    with Client(server_url) as client:
        sync_deltas = list(client.stream_chat(TALK, max_tokens=30, seed=5))
    deltas = asyncio.run(stream()) if kind == "async" else sync_deltas
    assert "".join(delta.text for delta in deltas) == whole.text
    assert deltas[-1].usage == whole.usage


async def test_cancelling_the_task_that_reads_stops_the_server(server_url: str) -> None:
    has_begun = asyncio.Event()

    async def read() -> None:
        async with AsyncClient(server_url) as client:
            async with await client.stream_chat(TALK, max_tokens=200_000) as stream:
                async for _ in stream:
                    has_begun.set()

    task = asyncio.create_task(read())
    await asyncio.wait_for(has_begun.wait(), 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with httpx.Client(base_url=server_url) as http:
        wait_for(http, "dijiang_num_requests_running", 0)


def test_an_open_connection_is_used_again(server_url: str) -> None:
    class Counting(httpx.HTTPTransport):
        sockets: set[Any] = set()

        def handle_request(self, request: httpx.Request) -> httpx.Response:
            response = super().handle_request(request)
            stream = response.extensions["network_stream"]
            self.sockets.add(stream.get_extra_info("client_addr"))
            return response

    transport = Counting()
    with Client(server_url, transport=transport) as client:
        for _ in range(3):
            list(client.stream_chat(TALK, max_tokens=5))
    assert len(transport.sockets) == 1
