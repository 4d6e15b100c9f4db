"""The same answer, always: alone or among any neighbours, however a prompt is split."""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest

from dijiang_runtime.engine.engine import Engine
from dijiang_runtime.engine.merge import merge_outputs
from dijiang_runtime.ops.cpu.library import NO_TARGET, TARGET_VARIABLE, targets
from dijiang_runtime.request import FinishReason, Request, RequestOutput
from tests.engine.requests import random_requests
from tests.small_models import FAMILIES

MakeEngine = Callable[..., Engine]


@dataclass(frozen=True)
class Answer:
    """What must be the same to the last bit."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[object, ...] | None
    prompt_logprobs: tuple[object, ...] | None
    finish_reason: FinishReason | None
    stop_reason: str | int | None


def answers(outputs: Iterable[RequestOutput]) -> dict[str, Answer]:
    parts: dict[str, list[RequestOutput]] = {}
    for output in outputs:
        parts.setdefault(output.request_id, []).append(output)
    merged = {request_id: merge_outputs(some) for request_id, some in parts.items()}
    return {
        request_id: Answer(
            output.text,
            output.token_ids,
            output.logprobs,
            output.prompt_logprobs,
            output.finish_reason,
            output.stop_reason,
        )
        for request_id, output in merged.items()
    }


def run_alone(engine: Engine, requests: list[Request]) -> dict[str, Answer]:
    outputs = []
    for request in requests:
        engine.add_request(request)
        while engine.has_work:
            outputs.extend(engine.step())
    return answers(outputs)


def run_together(engine: Engine, requests: list[Request], *, seed: int) -> dict[str, Answer]:
    """Let the requests arrive in random order at random steps."""
    rng = random.Random(seed)
    arriving = rng.sample(requests, len(requests))
    outputs = []
    while arriving or engine.has_work:
        for _ in range(min(len(arriving), rng.choice((0, 0, 1, 4, 30)))):
            engine.add_request(arriving.pop())
        outputs.extend(engine.step())
    return answers(outputs)


@pytest.fixture(scope="module")
def requests_of_every_kind() -> list[Request]:
    return random_requests(seed=1, num_requests=64)


def test_64_concurrent_requests_get_what_each_gets_alone(
    make_engine: MakeEngine, requests_of_every_kind: list[Request]
) -> None:
    expected = run_alone(make_engine(), requests_of_every_kind)
    assert {a.finish_reason for a in expected.values()} == {FinishReason.STOP, FinishReason.LENGTH}

    for seed in range(3):
        engine = make_engine(max_slots=random.Random(seed).choice((7, 40, 64)))
        assert run_together(engine, requests_of_every_kind, seed=seed) == expected


@pytest.mark.parametrize("target", [*targets(), NO_TARGET])
@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_neighbours_do_not_matter_in_any_dtype_on_any_processor(
    make_engine: MakeEngine,
    requests_of_every_kind: list[Request],
    dtype: str,
    target: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if target == NO_TARGET and dtype == "int8":
        pytest.skip("int8 needs the compiled kernels")
    monkeypatch.setenv(TARGET_VARIABLE, target)
    requests = requests_of_every_kind[:24]
    expected = run_alone(make_engine(dtype=dtype), requests)

    # The compiled kernels share out outputs, never sums: threads do not matter either.
    num_threads = 1 if target == NO_TARGET else 2
    engine = make_engine(dtype=dtype, num_threads=num_threads, max_slots=20)

    assert run_together(engine, requests, seed=0) == expected


def test_neighbours_do_not_matter_without_compiled_kernels(
    make_engine: MakeEngine,
    requests_of_every_kind: list[Request],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(TARGET_VARIABLE, NO_TARGET)
    expected = run_alone(make_engine(), requests_of_every_kind)

    assert run_together(make_engine(), requests_of_every_kind, seed=0) == expected


@pytest.mark.parametrize("max_batched_tokens", [1, 64, 100, 8192])
def test_a_prompt_may_be_split_anywhere(
    make_engine: MakeEngine, requests_of_every_kind: list[Request], max_batched_tokens: int
) -> None:
    requests = requests_of_every_kind[:24]
    expected = run_alone(make_engine(), requests)

    engine = make_engine(max_batched_tokens=max_batched_tokens)

    assert run_together(engine, requests, seed=0) == expected


@pytest.mark.parametrize("num_threads", [2, 3])
def test_neighbours_do_not_matter_at_any_number_of_threads(
    make_engine: MakeEngine, requests_of_every_kind: list[Request], num_threads: int
) -> None:
    requests = requests_of_every_kind[:32]
    expected = run_alone(make_engine(num_threads=num_threads), requests)

    engine = make_engine(num_threads=num_threads)

    assert run_together(engine, requests, seed=0) == expected


def test_neighbours_do_not_matter_where_torch_shares_rows_out_among_threads(
    make_engine: MakeEngine,
    make_tiny_model: Callable[..., Path],
    requests_of_every_kind: list[Request],
) -> None:
    # From 32,768 elements on, torch cuts a tensor into one share for each thread, mid-row.
    model = make_tiny_model(**FAMILIES["llama"], intermediate_size=1040)
    requests = requests_of_every_kind[:20]
    expected = run_alone(make_engine(model=model, num_threads=3), requests)

    engine = make_engine(model=model, num_threads=3, max_batched_tokens=2048)

    assert run_together(engine, requests, seed=1) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_neighbours_do_not_matter_in_any_family(
    make_engine: MakeEngine,
    make_tiny_model: Callable[..., Path],
    requests_of_every_kind: list[Request],
    family: str,
) -> None:
    requests = requests_of_every_kind[:20]
    model = make_tiny_model(**FAMILIES[family])
    expected = run_alone(make_engine(model=model), requests)

    assert run_together(make_engine(model=model), requests, seed=1) == expected
