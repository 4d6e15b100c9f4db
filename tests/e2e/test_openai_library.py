"""The official OpenAI library, unmodified, against a real server."""

from typing import Any

import openai
import pytest

GREEDY: dict[str, Any] = {"model": "tiny", "temperature": 0, "max_tokens": 12}
STREAM: dict[str, Any] = {**GREEDY, "stream": True, "stream_options": {"include_usage": True}}
MESSAGES: list[Any] = [
    {"role": "system", "content": "the fox"},
    {"role": "user", "content": "jumps"},
]


def test_completions(sdk: openai.OpenAI) -> None:
    answer = sdk.completions.create(prompt="the quick", **GREEDY)
    assert answer.choices[0].text
    assert answer.usage.completion_tokens == 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 12

    *chunks, last = list(sdk.completions.create(prompt="the quick", **STREAM))
    assert "".join(chunk.choices[0].text for chunk in chunks) == answer.choices[0].text
    assert chunks[-1].choices[0].finish_reason == "length"
    assert last.usage == answer.usage


def test_chat(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(messages=MESSAGES, **GREEDY)
    message = answer.choices[0].message
    assert message.role == "assistant" and message.content
    assert answer.usage.completion_tokens == 12

    *chunks, last = list(sdk.chat.completions.create(messages=MESSAGES, **STREAM))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == message.content
    assert last.usage == answer.usage


def test_the_library_s_stream_of_chat_events(sdk: openai.OpenAI) -> None:
    with sdk.chat.completions.stream(messages=MESSAGES, **GREEDY) as stream:
        text = "".join(event.delta for event in stream if event.type == "content.delta")
    whole = sdk.chat.completions.create(messages=MESSAGES, **GREEDY)
    assert text == whole.choices[0].message.content


def test_logprobs_are_the_same_streamed_and_not(sdk: openai.OpenAI) -> None:
    wanted = {"logprobs": True, "top_logprobs": 3}
    whole = sdk.chat.completions.create(messages=MESSAGES, **GREEDY, **wanted)
    entries = whole.choices[0].logprobs.content
    assert len(entries) == 12
    for entry in entries:
        # Greedy: the chosen token is the likeliest.
        assert entry.logprob == entry.top_logprobs[0].logprob <= 0

    chunks = list(sdk.chat.completions.create(messages=MESSAGES, **STREAM, **wanted))
    parts = [
        choice.logprobs.content for chunk in chunks for choice in chunk.choices if choice.logprobs
    ]
    assert [entry for part in parts for entry in part] == entries


def test_echo_scores_the_prompt(sdk: openai.OpenAI) -> None:
    text = "the quick brown fox"
    answer = sdk.completions.create(model="tiny", prompt=text, echo=True, logprobs=1, max_tokens=0)
    assert answer.choices[0].text == text
    logprobs: Any = answer.choices[0].logprobs
    assert "".join(logprobs.tokens) == text
    assert logprobs.token_logprobs[0] is None
    assert all(value < 0 for value in logprobs.token_logprobs[1:])


def test_choices_differ_and_each_can_be_asked_for_alone(sdk: openai.OpenAI) -> None:
    wanted: dict[str, Any] = {"model": "tiny", "prompt": "the", "max_tokens": 16}
    together = sdk.completions.create(n=4, seed=7, **wanted)
    texts = [choice.text for choice in together.choices]
    assert len(set(texts)) == 4
    alone = [sdk.completions.create(seed=7 + i, **wanted) for i in range(4)]
    assert [answer.choices[0].text for answer in alone] == texts


def test_a_stop_string_ends_the_answer(sdk: openai.OpenAI) -> None:
    wanted = {**GREEDY, "max_tokens": 40, "prompt": "the"}
    text = sdk.completions.create(**wanted).choices[0].text
    stop = text[len(text) // 2 : len(text) // 2 + 3]
    stopped = sdk.completions.create(stop=[stop], **wanted).choices[0]
    assert stopped.text == text[: text.index(stop)]
    assert stopped.finish_reason == "stop"


def test_responses(sdk: openai.OpenAI) -> None:
    wanted: dict[str, Any] = {"model": "tiny", "temperature": 0, "max_output_tokens": 12}
    answer = sdk.responses.create(input="jumps", instructions="the fox", **wanted)
    chat = sdk.chat.completions.create(messages=MESSAGES, **GREEDY)
    assert answer.output_text == chat.choices[0].message.content
    assert answer.status == "incomplete"
    assert answer.usage.output_tokens == 12
    assert answer.usage.input_tokens == chat.usage.prompt_tokens

    events = list(
        sdk.responses.create(input="jumps", instructions="the fox", stream=True, **wanted)
    )
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == answer.output_text
    assert events[0].type == "response.created"
    assert events[-1].type == "response.incomplete"
    assert events[-1].response.usage == answer.usage

    with sdk.responses.stream(input="jumps", instructions="the fox", **wanted) as stream:
        for _ in stream:
            pass


def test_a_conversation_of_responses_goes_on(sdk: openai.OpenAI) -> None:
    items: list[Any] = [{"role": "user", "content": "the fox"}]
    wanted: dict[str, Any] = {"model": "tiny", "max_output_tokens": 8, "temperature": 0}
    first = sdk.responses.create(input=items, **wanted)
    items += [item.model_dump() for item in first.output]
    items.append({"role": "user", "content": "jumps"})
    second = sdk.responses.create(input=items, **wanted)
    assert second.usage.input_tokens > first.usage.total_tokens


def test_embeddings(sdk: openai.OpenAI) -> None:
    texts = ["the fox", "jumps over", "the fox"]
    # The library asks for base64 unless it is told otherwise.
    packed = sdk.embeddings.create(model="tiny", input=texts)
    plain = sdk.embeddings.create(model="tiny", input=texts, encoding_format="float")
    vectors = [item.embedding for item in packed.data]
    assert vectors == [pytest.approx(item.embedding, abs=1e-7) for item in plain.data]
    assert vectors[0] == vectors[2] != vectors[1]
    assert sum(x * x for x in vectors[0]) == pytest.approx(1, abs=1e-5)
    alone = sdk.embeddings.create(model="tiny", input="the fox")
    assert alone.data[0].embedding == vectors[0]
    assert packed.usage == plain.usage


def test_models(sdk: openai.OpenAI) -> None:
    assert [model.id for model in sdk.models.list()] == ["tiny"]
    assert sdk.models.retrieve("tiny").id == "tiny"


def test_errors_are_the_library_s_own(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        sdk.completions.create(model="other", prompt="x")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        sdk.completions.create(model="tiny", prompt="x", temperature=3)
    assert bad.value.param == "temperature"
