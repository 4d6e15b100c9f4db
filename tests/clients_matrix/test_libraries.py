"""LangChain, LiteLLM and Instructor: their text, their streams, their structured answers."""

import json
from typing import Any, Literal

import instructor
import litellm
import openai
import pytest
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel, ConfigDict, Field

PROMPT = "Once upon a time there was a"
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 24}


class Pet(BaseModel):
    """A pet. Nothing more: a small model would go on for ever."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["cat", "dog"]
    legs: int = Field(ge=3, le=4)


@pytest.fixture
def sdk(base_url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=base_url, api_key="none", max_retries=0)


@pytest.fixture
def reference(sdk: openai.OpenAI) -> str:
    """The chat's answer, by the library that the others are built on."""
    answer = sdk.chat.completions.create(
        model="demo", messages=[{"role": "user", "content": PROMPT}], **GREEDY
    )
    return answer.choices[0].message.content or ""


def test_langchain(base_url: str, reference: str) -> None:
    chat = ChatOpenAI(base_url=base_url, api_key="none", model="demo", max_retries=0, **GREEDY)
    answer = chat.invoke(PROMPT)
    assert answer.content == reference
    assert answer.usage_metadata["output_tokens"] == 24

    chunks = list(chat.stream(PROMPT, stream_usage=True))
    assert "".join(chunk.content for chunk in chunks) == reference
    assert len(chunks) > 10
    assert [answer.content for answer in chat.batch([PROMPT, PROMPT])] == [reference] * 2

    structured = chat.with_structured_output(Pet, method="json_schema")
    assert isinstance(structured.invoke("A cat has four legs."), Pet)

    logprobs = chat.bind(logprobs=True, top_logprobs=2).invoke(PROMPT)
    assert len(logprobs.response_metadata["logprobs"]["content"]) == 24


def test_langchain_by_the_other_endpoints(base_url: str, reference: str) -> None:
    server: dict[str, Any] = {"base_url": base_url, "api_key": "none", "model": "demo"}
    chat = ChatOpenAI(use_responses_api=True, max_retries=0, **server, **GREEDY)
    assert chat.invoke(PROMPT).text == reference
    assert "".join(chunk.text for chunk in chat.stream(PROMPT)) == reference

    text = OpenAI(max_retries=0, **server, **GREEDY)
    assert text.invoke(PROMPT) == "".join(text.stream(PROMPT)) != ""

    embeddings = OpenAIEmbeddings(check_embedding_ctx_length=False, **server)
    first, second = embeddings.embed_documents(["a red ball", "a blue ball"])
    assert first == pytest.approx(embeddings.embed_query("a red ball"))
    assert len(first) == len(second) and first != second


def test_litellm(base_url: str, reference: str) -> None:
    wanted: dict[str, Any] = {
        "model": "hosted_vllm/demo",
        "messages": [{"role": "user", "content": PROMPT}],
        "api_base": base_url,
        "num_retries": 0,
        **GREEDY,
    }
    answer = litellm.completion(**wanted)
    assert answer.choices[0].message.content == reference
    assert answer.usage.completion_tokens == 24

    chunks = list(litellm.completion(**wanted, stream=True, stream_options={"include_usage": True}))
    texts = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    assert "".join(texts) == reference and len(texts) > 10
    assert litellm.stream_chunk_builder(chunks).usage.completion_tokens == 24

    # By its provider of anything like OpenAI, and by the endpoint for plain text.
    assert litellm.completion(**{**wanted, "model": "openai/demo"}) is not None
    text = litellm.text_completion(
        model="text-completion-openai/demo", prompt=PROMPT, api_base=base_url, **GREEDY
    )
    assert text.choices[0].text

    pet = litellm.completion(**{**wanted, "max_tokens": 60}, response_format=Pet)
    Pet.model_validate_json(pet.choices[0].message.content)
    extra = litellm.completion(**wanted, extra_body={"structured_outputs": {"choice": ["yes"]}})
    assert extra.choices[0].message.content == "yes"


def test_litellm_knows_our_errors(base_url: str) -> None:
    messages = [{"role": "user", "content": PROMPT}]
    server: dict[str, Any] = {"model": "openai/demo", "api_base": base_url, "num_retries": 0}
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(messages=messages, max_tokens=10_000_000, **server)
    with pytest.raises(litellm.BadRequestError, match="temperature must be"):
        litellm.completion(messages=messages, temperature=3, **server)


def test_instructor(sdk: openai.OpenAI) -> None:
    client = instructor.from_openai(sdk, mode=instructor.Mode.JSON_SCHEMA)
    wanted: dict[str, Any] = {
        "model": "demo",
        "messages": [{"role": "user", "content": "Tom had a cat. It had four legs."}],
        "response_model": Pet,
        "temperature": 0,
        "max_retries": 0,
    }
    pet = client.chat.completions.create(**wanted)
    assert isinstance(pet, Pet) and pet.legs in (3, 4)

    partial = list(client.chat.completions.create_partial(**wanted))
    assert json.loads(partial[-1].model_dump_json()) == json.loads(pet.model_dump_json())


def test_tools(tools_url: str) -> None:
    server: dict[str, Any] = {"base_url": tools_url, "api_key": "none", "max_retries": 0}
    limits: dict[str, Any] = {"model": "demo", "temperature": 0, "max_tokens": 120}
    chat = ChatOpenAI(**server, **limits).bind_tools([Pet], tool_choice="required", strict=True)
    called = chat.invoke("A cat has four legs.")
    pets = [Pet.model_validate(call["args"]) for call in called.tool_calls]
    assert pets and not called.invalid_tool_calls
    streamed = None
    for chunk in chat.stream("A cat has four legs."):
        streamed = chunk if streamed is None else streamed + chunk
    assert streamed is not None
    assert [call["args"] for call in streamed.tool_calls] == [c["args"] for c in called.tool_calls]

    newer = ChatOpenAI(use_responses_api=True, **server, **limits)
    items = newer.bind_tools([Pet], tool_choice="required", strict=True).invoke("A cat.")
    assert [Pet.model_validate(call["args"]) for call in items.tool_calls]

    sdk = openai.OpenAI(**server)
    tools: Any = [openai.pydantic_function_tool(Pet, name="pet")]
    wanted: dict[str, Any] = {
        **limits,
        "messages": [{"role": "user", "content": "A cat has four legs."}],
        "tools": tools,
        "tool_choice": "required",
    }
    with sdk.chat.completions.stream(**wanted) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion().choices[0]
    assert "tool_calls.function.arguments.delta" in kinds and final.finish_reason == "tool_calls"
    assert all(isinstance(c.function.parsed_arguments, Pet) for c in final.message.tool_calls)

    client = instructor.from_openai(sdk, mode=instructor.Mode.TOOLS)
    pet = client.chat.completions.create(
        **limits, messages=wanted["messages"], response_model=Pet, max_retries=0
    )
    assert isinstance(pet, Pet)
