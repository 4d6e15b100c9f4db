"""`/v1/embeddings`: inputs in all forms, and what is refused."""

import base64
import struct
from typing import Any

import httpx
import pytest
from openai.types import CreateEmbeddingResponse

from dijiang_runtime.errors import EngineOverloadedError
from tests.server.fake_engine import INFO, FakeEngine
from tests.server.test_metrics import scrape

PATH = "/v1/embeddings"


@pytest.mark.parametrize(
    ("given", "lengths"),
    [("Hello", [5]), (["Hi", "Hello"], [2, 5]), ([1, 2, 3], [3]), ([[1, 2], [3]], [2, 1])],
)
async def test_every_form_of_input_is_answered_in_order(
    client: httpx.AsyncClient, given: Any, lengths: list[int]
) -> None:
    response = await client.post(PATH, json={"input": given})

    answer = CreateEmbeddingResponse.model_validate(response.json(), strict=True)
    assert [item.index for item in answer.data] == list(range(len(lengths)))
    # The fake engine says how long each input is.
    assert [item.embedding[0] for item in answer.data] == lengths
    assert all(len(item.embedding) == INFO.hidden_size for item in answer.data)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(lengths)
    assert answer.model == "tiny"


async def test_base64_is_the_same_numbers(client: httpx.AsyncClient) -> None:
    numbers = (await client.post(PATH, json={"input": "Hi"})).json()["data"][0]["embedding"]
    body = {"input": "Hi", "encoding_format": "base64"}
    text = (await client.post(PATH, json=body)).json()["data"][0]["embedding"]
    assert list(struct.unpack(f"<{INFO.hidden_size}f", base64.b64decode(text))) == numbers


async def test_a_long_list_takes_its_turn(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    inputs = [[1] * (i % 7 + 1) for i in range(100)]
    response = await client.post(PATH, json={"input": inputs})
    data = response.json()["data"]
    assert [item["embedding"][0] for item in data] == [len(ids) for ids in inputs]
    assert len({request.request_id for request in engine.requests}) == 100
    samples = await scrape(client)
    assert samples["dijiang_prompt_tokens_total"] == sum(map(len, inputs))
    assert samples["dijiang_generation_tokens_total"] == 0


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({}, "input", None),
        ({"input": ""}, "input", None),
        ({"input": []}, "input", None),
        ({"input": ["a", ""]}, "input", None),
        ({"input": [[]]}, "input", None),
        ({"input": [300]}, "input", None),
        ({"input": [-1]}, "input", None),
        ({"input": [1, "a"]}, "input", None),
        ({"input": ["a"] * 2049}, "input", None),
        ({"input": "a" * 201}, "input", "context_length_exceeded"),
        ({"input": "a" * 2000}, "input", None),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format", None),
        ({"input": "a", "dimensions": 8}, "dimensions", "unsupported_parameter"),
        ({"input": "a", "dimensions": 16.0}, "dimensions", None),
        ({"input": "a", "timeout": 0}, "timeout", None),
    ],
)
async def test_what_is_wrong_is_named(
    client: httpx.AsyncClient, body: dict[str, Any], param: str, code: str | None
) -> None:
    response = await client.post(PATH, json=body)
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, param, code)


async def test_what_does_not_fit_is_cut_where_that_is_wanted(client: httpx.AsyncClient) -> None:
    response = await client.post(PATH, json={"input": "a" * 500, "truncate_prompt_tokens": -1})
    assert response.json()["usage"]["prompt_tokens"] == INFO.max_model_len


async def test_a_full_queue_refuses_the_whole_list(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.raises, engine.raises_after = EngineOverloadedError("full", retry_after_seconds=2), 40
    response = await client.post(PATH, json={"input": [[1]] * 100})
    assert response.status_code == 429 and response.headers["Retry-After"] == "2"
    samples = await scrape(client)
    assert samples[f"dijiang_requests_finished_total{{outcome=rejected,path={PATH}}}"] == 1
