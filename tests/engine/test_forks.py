"""Several answers to one prompt: the prompt is computed once, and its state copied."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dijiang_runtime.engine.engine import Engine
from dijiang_runtime.errors import InvalidRequestError
from dijiang_runtime.request import FinishReason, Request, RequestOutput
from tests.engine.requests import make_request, random_requests
from tests.engine.test_determinism import Answer, answers, run_alone
from tests.small_models import FAMILIES

MakeEngine = Callable[..., Engine]
PROMPT = tuple(range(5, 155))


def group_of(size: int, name: str = "g", prompt: tuple[int, ...] = PROMPT) -> list[Request]:
    """Requests with parameters of every kind, made answers to one prompt."""
    requests = []
    for i, request in enumerate(random_requests(seed=11, num_requests=size)):
        sampling = msgspec.structs.replace(request.sampling, prompt_logprobs=-1)
        requests.append(
            msgspec.structs.replace(
                request,
                request_id=f"{name}-{i}",
                prompt_token_ids=prompt,
                sampling=sampling,
                group=name,
            )
        )
    return requests


def drain(engine: Engine, requests: list[Request]) -> list[RequestOutput]:
    for request in requests:
        engine.add_request(request)
    outputs = []
    while engine.has_work:
        outputs.extend(engine.step())
    return outputs


def alone(engine: Engine, requests: list[Request]) -> dict[str, Answer]:
    return run_alone(engine, [msgspec.structs.replace(r, group=None) for r in requests])


@pytest.mark.parametrize("max_batched_tokens", [64, 512])
def test_each_answer_of_a_group_is_that_of_a_request_alone(
    make_engine: MakeEngine, max_batched_tokens: int
) -> None:
    requests = group_of(12)
    engine = make_engine(max_batched_tokens=max_batched_tokens)

    outputs = drain(engine, requests)

    assert answers(outputs) == alone(make_engine(), requests)
    stats = engine.take_stats()
    assert stats.prompt_tokens == len(PROMPT)
    assert stats.num_forks == 11
    copied = sorted(output.num_copied_tokens for output in outputs if output.finished)
    assert copied == [0, *[len(PROMPT)] * 11]


def test_answers_of_a_group_share_a_window_too(
    make_engine: MakeEngine, make_tiny_model: Callable[..., Path]
) -> None:
    model = make_tiny_model(**FAMILIES["window"])
    requests = group_of(6)

    outputs = drain(make_engine(model=model), requests)

    assert answers(outputs) == alone(make_engine(model=model), requests)


@pytest.mark.parametrize("num_slots", [1, 2, 5])
def test_a_group_larger_than_the_slots_is_admitted_in_parts(
    make_engine: MakeEngine, num_slots: int
) -> None:
    requests = group_of(12)

    outputs = drain(make_engine(max_slots=num_slots), requests)

    assert answers(outputs) == alone(make_engine(), requests)


def test_groups_run_beside_each_other_and_beside_strangers(make_engine: MakeEngine) -> None:
    requests = [
        *group_of(4, "a"),
        *random_requests(seed=2, num_requests=10),
        *group_of(5, "b", PROMPT[:64]),
        *group_of(3, "c", PROMPT[:1]),
    ]

    outputs = drain(make_engine(max_slots=9, max_batched_tokens=70), requests)

    assert answers(outputs) == alone(make_engine(), requests)


@pytest.mark.parametrize("num_steps", [0, 1, 2, 3])
def test_when_the_first_of_a_group_leaves_the_next_computes_the_prompt(
    make_engine: MakeEngine, num_steps: int
) -> None:
    requests = group_of(4)
    engine = make_engine(max_batched_tokens=64)
    for request in requests:
        engine.add_request(request)
    outputs = [output for _ in range(num_steps) for output in engine.step()]

    last = engine.abort(requests[0].request_id)
    assert last is None or last.finish_reason is FinishReason.ABORT
    while engine.has_work:
        outputs.extend(engine.step())

    expected = alone(make_engine(), requests)
    assert {i: a for i, a in answers(outputs).items() if i != "g-0"} == {
        i: a for i, a in expected.items() if i != "g-0"
    }


def test_who_fails_where_a_group_parts_fails_alone(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = group_of(5)
    engine = make_engine()
    sampler = engine._runner._sampler  # type: ignore[attr-defined]
    sample = sampler.sample

    def faulty(logits: Any, sequences: Any, likeliest: Any) -> Any:
        if any(sequence.request_id == "g-3" for sequence in sequences):
            raise RuntimeError("planted")
        return sample(logits, sequences, likeliest)

    monkeypatch.setattr(sampler, "sample", faulty)

    got = answers(drain(engine, requests))

    expected = alone(make_engine(), requests)
    assert got.pop("g-3").finish_reason is FinishReason.ERROR
    assert got == {i: a for i, a in expected.items() if i != "g-3"}


def test_who_names_the_group_of_another_prompt_computes_its_own(make_engine: MakeEngine) -> None:
    requests = group_of(2)
    odd = {"request_id": "odd", "prompt_token_ids": PROMPT[:7]}
    requests.append(msgspec.structs.replace(requests[1], **odd))

    assert answers(drain(make_engine(), requests)) == alone(make_engine(), requests)


def test_a_group_has_no_prompt_logprobs(make_engine: MakeEngine) -> None:
    request = msgspec.structs.replace(make_request(prompt_logprobs=0), group="g")

    with pytest.raises(InvalidRequestError, match="prompt_logprobs"):
        make_engine().add_request(request)
