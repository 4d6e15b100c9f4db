"""Whatever is asked for, a stream says what the whole answer says, in OpenAI's form."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from dijiang_runtime.config import EngineConfig
from dijiang_runtime.engine.client import InProcessEngine
from server.app import create_app
from server.config import ServerConfig
from tests.server.asgi import events

NUM_TOKENS = 384
NUM_EXAMPLES = 100
"""Of each endpoint in one run of the suite; every run has others."""

MANY_EXAMPLES = 500
"""Of each endpoint in a run of the slow tests."""

EXHAUSTIVE = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


class Server:
    """An app with a real engine, asked from outside its event loop."""

    def __init__(self, model: Path) -> None:
        self.runner = asyncio.Runner()
        self.engine = InProcessEngine(EngineConfig(model=model, max_slots=8, num_threads=1))
        self.runner.run(self.engine.start())
        self.app = create_app(self.engine, ServerConfig(model=model, served_model_name=("tiny",)))

    def both(self, path: str, body: dict[str, Any]) -> tuple[Any, list[Any]]:
        """The whole answer and the chunks of the stream, or for both the same refusal."""
        return self.runner.run(self._both(path, body))

    def close(self) -> None:
        self.runner.run(self.engine.stop())
        self.runner.close()

    async def _both(self, path: str, body: dict[str, Any]) -> tuple[Any, list[Any]]:
        options = {"include_usage": True, "continuous_usage_stats": True}
        transport = httpx.ASGITransport(self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            whole = await client.post(path, json=body)
            stream = {**body, "stream": True, "stream_options": options}
            streamed = await client.post(path, json=stream)
        assert whole.status_code == streamed.status_code == 200, whole.text
        *chunks, end = events(streamed.text)
        assert end == "[DONE]"
        return whole.json(), chunks


@pytest.fixture(scope="module")
def server(tiny_model: Path) -> Iterator[Server]:
    server = Server(tiny_model)
    yield server
    server.close()


TEXTS = st.text(st.sampled_from("the fox é … 日本 \n🦊ab"), min_size=1, max_size=12)
TOKEN_IDS = st.lists(st.integers(0, NUM_TOKENS - 1), min_size=1, max_size=70)
SOME_IDS = st.lists(st.integers(0, NUM_TOKENS - 1), min_size=1, max_size=40)
COMMON: dict[str, st.SearchStrategy[Any]] = {
    "n": st.integers(1, 3),
    "temperature": st.sampled_from([0, 0.7, 1.0, 2.0]),
    "top_p": st.floats(0.05, 1.0),
    "top_k": st.integers(-1, 400),
    "min_p": st.floats(0.0, 0.5),
    "frequency_penalty": st.floats(-2, 2),
    "presence_penalty": st.floats(-2, 2),
    "repetition_penalty": st.floats(0.5, 2),
    "logit_bias": st.dictionaries(
        st.integers(0, NUM_TOKENS - 1).map(str), st.floats(-100, 100), max_size=5
    ),
    "allowed_token_ids": SOME_IDS,
    "bad_words": st.lists(TEXTS.filter(str.strip), max_size=5),
    "stop": st.lists(st.text("abcdefgh .é", min_size=1, max_size=2), max_size=4),
    "stop_token_ids": SOME_IDS,
    "include_stop_str_in_output": st.booleans(),
    "ignore_eos": st.booleans(),
    "return_token_ids": st.booleans(),
    "return_tokens_as_token_ids": st.booleans(),
    "truncate_prompt_tokens": st.sampled_from([-1, 1, 3]),
    "truncation_side": st.sampled_from(["left", "right"]),
    "priority": st.integers(-3, 3),
    "stream_interval": st.integers(1, 5),
    "cache_salt": st.sampled_from(["a", "b" * 128]),
}
REQUIRED: dict[str, st.SearchStrategy[Any]] = {
    # Without a seed no two answers are the same; without a limit they are long.
    "seed": st.integers(-(2**63), 2**63 - 1),
    "max_tokens": st.integers(1, 24),
}

COMPLETIONS = st.fixed_dictionaries(
    {"prompt": st.one_of(TEXTS, st.lists(TEXTS, min_size=1, max_size=2), TOKEN_IDS), **REQUIRED},
    optional={**COMMON, "logprobs": st.integers(0, 3), "echo": st.booleans()},
)
CHATS = st.fixed_dictionaries(
    {
        "messages": st.lists(
            st.fixed_dictionaries(
                {"role": st.sampled_from(["system", "user", "assistant"]), "content": TEXTS}
            ),
            min_size=1,
            max_size=3,
        ),
        **REQUIRED,
    },
    optional={
        **COMMON,
        "logprobs": st.just(True),
        "continue_final_message": st.booleans(),
    },
)


def joined(parts: list[dict[str, Any] | None]) -> dict[str, Any] | None:
    """Several logprobs objects as one."""
    found = [part for part in parts if part is not None]
    if not found:
        return None
    return {
        key: sum((part[key] for part in found), []) if isinstance(value, list) else value
        for key, value in found[0].items()
    }


def without_nulls(choice: dict[str, Any]) -> dict[str, Any]:
    """A completion's choice without the nulls that OpenAI sends and its library does not describe:
    the reason to end before the end, and the logprob of the first token of a prompt."""
    logprobs = choice["logprobs"] and {
        **choice["logprobs"],
        "token_logprobs": [value or 0.0 for value in choice["logprobs"]["token_logprobs"]],
        "top_logprobs": [value or {} for value in choice["logprobs"]["top_logprobs"]],
    }
    reason = choice["finish_reason"] or "stop"
    return {**choice, "finish_reason": reason, "logprobs": logprobs}


def of_index(chunks: list[Any], index: int) -> list[dict[str, Any]]:
    return [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]


def check_ends(whole: dict[str, Any], parts: list[dict[str, Any]]) -> None:
    """The reason to end comes once, and last."""
    assert [part["finish_reason"] for part in parts[:-1]] == [None] * (len(parts) - 1)
    assert parts[-1]["finish_reason"] == whole["finish_reason"]
    assert parts[-1]["stop_reason"] == whole["stop_reason"]


def check_completion(server: Server, body: dict[str, Any]) -> None:
    whole, chunks = server.both("/v1/completions", body)

    for answer in (whole, *chunks):
        choices = [without_nulls(choice) for choice in answer["choices"]]
        Completion.model_validate({**answer, "choices": choices}, strict=True)
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"] == whole["usage"]
    for choice in whole["choices"]:
        parts = of_index(chunks, choice["index"])
        assert "".join(part["text"] for part in parts) == choice["text"]
        assert joined([part["logprobs"] for part in parts]) == choice["logprobs"]
        ids = [i for part in parts for i in part.get("token_ids", ())]
        assert ids == choice.get("token_ids", [])
        assert parts[0].get("prompt_token_ids") == choice.get("prompt_token_ids")
        check_ends(choice, parts)


def check_chat(server: Server, body: dict[str, Any]) -> None:
    whole, chunks = server.both("/v1/chat/completions", body)

    ChatCompletion.model_validate(whole, strict=True)
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk, strict=True)
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"] == whole["usage"]
    assert chunks[0].get("prompt_token_ids") == whole.get("prompt_token_ids")
    for choice in whole["choices"]:
        first, *parts = of_index(chunks, choice["index"])
        assert first["delta"] == {"role": "assistant", "content": ""}
        text = "".join(part["delta"].get("content", "") for part in parts)
        assert text == choice["message"]["content"]
        assert (joined([part["logprobs"] for part in parts]) or None) == choice["logprobs"]
        ids = [i for part in parts for i in part.get("token_ids", ())]
        assert ids == choice.get("token_ids", [])
        check_ends(choice, parts)


# A special token has no text, so the echo of one waits for the answer's text, its logprobs too.
SILENT_ECHO = {
    "prompt": [299],
    "seed": 0,
    "max_tokens": 2,
    "temperature": 0,
    "logprobs": 0,
    "echo": True,
}


@given(body=COMPLETIONS)
@example(body=SILENT_ECHO)
@settings(EXHAUSTIVE, max_examples=NUM_EXAMPLES)
def test_a_streamed_completion_is_the_whole_one(server: Server, body: dict[str, Any]) -> None:
    check_completion(server, body)


@given(body=CHATS)
@settings(EXHAUSTIVE, max_examples=NUM_EXAMPLES)
def test_a_streamed_chat_is_the_whole_one(server: Server, body: dict[str, Any]) -> None:
    check_chat(server, body)


@pytest.mark.slow
@given(body=COMPLETIONS)
@settings(EXHAUSTIVE, max_examples=MANY_EXAMPLES)
def test_many_streamed_completions_are_the_whole_ones(server: Server, body: dict[str, Any]) -> None:
    check_completion(server, body)


@pytest.mark.slow
@given(body=CHATS)
@settings(EXHAUSTIVE, max_examples=MANY_EXAMPLES)
def test_many_streamed_chats_are_the_whole_ones(server: Server, body: dict[str, Any]) -> None:
    check_chat(server, body)
