"""Many streams at once, through a real server."""

import asyncio
import random
from typing import Any

import openai

from tests.e2e.server_process import ServerProcess

NUM_STREAMS = 64


def mixed_requests() -> list[dict[str, Any]]:
    """Prompts of 1 to 200 tokens, answers of 1 to 60, greedy and seeded, some with a stop."""
    rng = random.Random(0)
    words = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog", "é", "😀"]
    requests = []
    for i in range(NUM_STREAMS):
        prompt = " ".join(rng.choices(words, k=rng.choice([1, 5, 20, 60])))
        sampling: dict[str, Any] = {"temperature": 0}
        if i % 2:
            sampling = {"temperature": 1.0, "seed": i, "top_p": 0.95, "presence_penalty": 0.5}
        if i % 5 == 0:
            sampling["stop"] = ["e"]
        requests.append({"prompt": prompt, "max_tokens": rng.randint(1, 60), **sampling})
    return requests


async def read(sdk: openai.AsyncOpenAI, request: dict[str, Any]) -> tuple[str, str | None, int]:
    """The text of a stream, why it ended, and its number of tokens."""
    stream = await sdk.completions.create(
        model="tiny", stream=True, stream_options={"include_usage": True}, **request
    )
    text, reason, num_tokens = "", None, 0
    async for chunk in stream:
        for choice in chunk.choices:
            text += choice.text
            reason = choice.finish_reason or reason
        if chunk.usage:
            num_tokens = chunk.usage.completion_tokens
    return text, reason, num_tokens


async def test_64_streams_at_once_say_what_each_says_alone(server: ServerProcess) -> None:
    url = server.wait_ready() + "/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as sdk:
        requests = mixed_requests()
        alone = [await read(sdk, request) for request in requests]
        together = await asyncio.gather(*(read(sdk, request) for request in requests))
    assert together == alone
    # The comparison has something to compare: answers of many lengths, and not all the same.
    assert len({num_tokens for _, _, num_tokens in alone}) > 20
    assert len({text for text, _, _ in alone}) > NUM_STREAMS // 2
