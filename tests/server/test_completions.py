"""`/v1/completions`, answered by a fake engine."""

from typing import Any

import httpx
import pytest
from openai.types import Completion

from dijiang_runtime.request import FinishReason, RequestOutput
from server.protocol.logprobs import TextOffsets
from tests.server.fake_engine import FakeEngine

URL = "/v1/completions"
ONCE = {"model": "tiny", "prompt": "Once"}


async def complete(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    response = await client.post(URL, json={**ONCE, **body})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def test_an_answer_is_what_the_openai_library_expects(client: httpx.AsyncClient) -> None:
    answer = await complete(client, logprobs=2)

    completion = Completion.model_validate(answer, strict=True)
    assert completion.object == "text_completion"
    assert completion.model == "tiny"
    assert completion.id.startswith("cmpl-")
    assert completion.choices[0].text == " there was a cat"
    assert completion.choices[0].finish_reason == "stop"


async def test_usage_counts_tokens(client: httpx.AsyncClient) -> None:
    answer = await complete(client, max_tokens=5)

    # The tokenizer has one token for each byte.
    assert answer["usage"] == {"prompt_tokens": 4, "completion_tokens": 5, "total_tokens": 9}
    assert answer["choices"][0]["finish_reason"] == "length"


async def test_a_prompt_with_several_choices_counts_once(client: httpx.AsyncClient) -> None:
    answer = await complete(client, n=3, max_tokens=5)

    assert answer["usage"] == {"prompt_tokens": 4, "completion_tokens": 15, "total_tokens": 19}


async def test_max_tokens_is_16_by_default(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    await complete(client)
    assert engine.requests[0].sampling.max_tokens == 16


async def test_the_default_of_max_tokens_shrinks_to_what_is_left(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    await complete(client, prompt="x" * 195)
    assert engine.requests[0].sampling.max_tokens == 5


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("ab", ["ab"]),
        (["ab", "c"], ["ab", "c"]),
        ([1, 2], [(1, 2)]),
        ([[1, 2], [3]], [(1, 2), (3,)]),
    ],
    ids=["text", "texts", "ids", "lists of ids"],
)
async def test_a_prompt_has_four_forms(
    client: httpx.AsyncClient, engine: FakeEngine, prompt: Any, expected: list[Any]
) -> None:
    answer = await complete(client, prompt=prompt)

    ids = [tuple(engine.tokenizer.encode(p)) if isinstance(p, str) else p for p in expected]
    assert [request.prompt_token_ids for request in engine.requests] == ids
    assert [choice["index"] for choice in answer["choices"]] == list(range(len(expected)))


async def test_choices_of_a_prompt_stand_together(client: httpx.AsyncClient) -> None:
    answer = await complete(client, prompt=["a", "b"], n=2, echo=True, max_tokens=1)
    assert [choice["text"] for choice in answer["choices"]] == ["a ", "a ", "b ", "b "]


async def test_each_choice_has_the_next_seed(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    await complete(client, prompt=["a", "b"], n=2, seed=2**63 - 1)

    seeds = [request.sampling.seed for request in engine.requests]
    assert seeds == [2**63 - 1, -(2**63), 2**63 - 1, -(2**63)]


async def test_every_request_in_the_engine_has_an_id_of_its_own(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    for _ in range(2):
        await client.post(URL, json={**ONCE, "n": 2}, headers={"X-Request-Id": "same"})
    assert len({request.request_id for request in engine.requests}) == 4


async def test_sampling_parameters_reach_the_engine(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    given = {
        "max_tokens": 7,
        "min_tokens": 2,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.05,
        "frequency_penalty": -1.5,
        "presence_penalty": 1,
        "repetition_penalty": 1.1,
        "seed": 5,
        "include_stop_str_in_output": True,
        "ignore_eos": True,
        "logprobs": 3,
        "prompt_logprobs": 1,
    }
    lists = {"logit_bias": {"7": -100}, "stop": "\n", "stop_token_ids": [9]}
    await complete(client, **given, **lists)

    sampling = engine.requests[0].sampling
    assert {name: getattr(sampling, name) for name in given} == given
    assert sampling.logit_bias == {7: -100.0}
    assert sampling.stop == ("\n",)
    assert sampling.stop_token_ids == (9,)


async def test_null_is_the_default(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    names = ("temperature", "n", "stop", "seed", "stream", "logit_bias", "suffix", "best_of")
    await complete(client, **dict.fromkeys(names))
    assert engine.requests[0].sampling.temperature == 1.0


async def test_echo_repeats_the_prompt(client: httpx.AsyncClient) -> None:
    answer = await complete(client, echo=True)
    assert answer["choices"][0]["text"] == "Once there was a cat"


async def test_echo_alone_generates_nothing(client: httpx.AsyncClient) -> None:
    answer = await complete(client, echo=True, max_tokens=0, prompt=[79, 72])
    assert answer["choices"][0]["text"] == "pi"
    assert answer["usage"]["completion_tokens"] == 0


async def test_echo_with_logprobs_begins_with_the_prompt(client: httpx.AsyncClient) -> None:
    answer = await complete(client, echo=True, logprobs=1, max_tokens=2)

    logprobs = answer["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["O", "n", "c", "e", " ", "t"]
    assert logprobs["token_logprobs"] == [None, *[-1.5] * 5]
    assert logprobs["text_offset"] == [0, 1, 2, 3, 4, 5]
    assert logprobs["top_logprobs"][0] is None


async def test_the_chosen_token_is_always_among_the_alternatives(
    client: httpx.AsyncClient,
) -> None:
    answer = await complete(client, logprobs=0, max_tokens=1)
    assert answer["choices"][0]["logprobs"]["top_logprobs"] == [{" ": -1.5}]


async def test_parts_of_a_character_keep_distinct_names(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.answer = "é"
    answer = await complete(client, logprobs=0)
    assert answer["choices"][0]["logprobs"]["tokens"] == ["bytes:\\xc3", "bytes:\\xa9"]


async def test_prompt_logprobs_have_the_form_of_vllm(client: httpx.AsyncClient) -> None:
    answer = await complete(client, prompt=[79, 72], prompt_logprobs=0)
    assert answer["choices"][0]["prompt_logprobs"] == [
        None,
        {"72": {"logprob": -1.5, "decoded_token": "i"}},
    ]


async def test_the_stop_that_matched_is_told(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.script = lambda request: [
        RequestOutput(
            request_id=request.request_id,
            text="x",
            token_ids=(1,),
            finish_reason=FinishReason.STOP,
            stop_reason="###",
            num_prompt_tokens=1,
            num_output_tokens=1,
        )
    ]
    answer = await complete(client, stop=["###"])
    assert answer["choices"][0]["stop_reason"] == "###"


async def test_special_tokens_in_a_prompt_are_plain_text(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    await complete(client, prompt="<|endoftext|>")
    assert len(engine.requests[0].prompt_token_ids) == len("<|endoftext|>")


async def test_without_a_model_the_served_one_answers(client: httpx.AsyncClient) -> None:
    response = await client.post(URL, json={"prompt": "Once"})
    assert response.json()["model"] == "tiny"


async def test_fields_without_effect_are_listed(client: httpx.AsyncClient) -> None:
    body = {**ONCE, "service_tier": "auto", "metadata": {}, "bad\nname": 1}
    response = await client.post(URL, json=body)
    assert response.headers["x-ignored-parameters"] == "metadata, service_tier"
    body = {**ONCE, "stream": True, "stream_options": {"include_obfuscation": False}}
    response = await client.post(URL, json=body)
    assert response.headers["x-ignored-parameters"] == "stream_options.include_obfuscation"
    assert "x-ignored-parameters" not in (await client.post(URL, json=ONCE)).headers


async def test_the_model_s_own_defaults_apply_where_the_request_is_silent(
    client_for: Any, engine: FakeEngine, model_folder: Any, tmp_path: Any
) -> None:
    for file in model_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    settings = '{"temperature": 0.7, "top_k": 20, "top_p": null, "eos_token_id": 256}'
    (tmp_path / "generation_config.json").write_text(settings)
    client = client_for(model=tmp_path, served_model_name=("tiny",))

    await complete(client, top_k=3)

    sampling = engine.requests[0].sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.7, 3, 1.0)


def test_a_token_that_goes_on_with_a_character_begins_where_it_does() -> None:
    offsets = TextOffsets()
    tokens = [b"a", b"\xc3", b"\xa9", b"\xf0\x9f", b"\xa6\x8a!", b"\xff", b""]
    # The text is aé🦊! and what is no text at all.
    assert [offsets.add(data) for data in tokens] == [0, 1, 1, 2, 2, 4, 5]
