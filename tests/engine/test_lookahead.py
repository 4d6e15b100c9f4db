"""Steps that are begun ahead: the same results, whoever ends, comes, leaves or fails meanwhile.

On the CPU, without the compiled kernels, as on a GPU but for the device.
"""

import random
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import pytest
from torch import Tensor

from dijiang_runtime.engine.engine import Engine
from dijiang_runtime.engine.lookahead import LookAheadRunner
from dijiang_runtime.engine.transfers import Readback
from dijiang_runtime.ops.cpu.library import NO_TARGET, TARGET_VARIABLE
from dijiang_runtime.request import FinishReason, Request, RequestOutput
from tests.engine.requests import make_request, random_requests
from tests.engine.test_determinism import answers, run_alone, run_together
from tests.engine.test_faults import BAD, FaultyModel, neighbours, run
from tests.small_models import FAMILIES

MakeEngine = Callable[..., Engine]


@pytest.fixture
def make_ahead(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> MakeEngine:
    """Engines that begin steps ahead. Those of `make_engine` compute the same in turn."""
    monkeypatch.setenv(TARGET_VARIABLE, NO_TARGET)

    def make(**options: object) -> Engine:
        engine = make_engine(**options)
        runner: Any = engine._runner
        engine._runner = LookAheadRunner(runner)
        return engine

    return make


def num_adopted(engine: Engine) -> int:
    runner: Any = engine._runner
    return int(runner.num_adopted)


def plain_requests(seed: int, num_requests: int) -> list[Request]:
    """Of every kind whose logits do not depend on the last token by way of the host."""
    nothing = {
        "bad_words": (),
        "repetition_penalty": 1.0,
        "frequency_penalty": 0.0,
        "presence_penalty": 0.0,
    }
    return [
        msgspec.structs.replace(
            request, sampling=msgspec.structs.replace(request.sampling, **nothing)
        )
        for request in random_requests(seed=seed, num_requests=num_requests)
    ]


@pytest.mark.parametrize("family", ["official", "window", "llama"])
def test_answers_are_those_of_steps_in_turn(
    make_ahead: MakeEngine,
    make_engine: MakeEngine,
    make_tiny_model: Callable[..., Path],
    family: str,
) -> None:
    requests = plain_requests(seed=5, num_requests=24)
    model = make_tiny_model(**FAMILIES[family])
    expected = run_alone(make_engine(model=model), requests)

    for max_slots in (3, 24):
        engine = make_ahead(model=model, max_slots=max_slots)
        assert run_together(engine, requests, seed=max_slots) == expected
        # Nearly every token but the first of each answer.
        num_tokens = sum(len(answer.token_ids) for answer in expected.values())
        assert num_adopted(engine) > 0.8 * (num_tokens - len(requests))
    # With room for few tokens in a step, some decodes have to wait for their turn.
    engine = make_ahead(model=model, max_batched_tokens=5)
    assert run_together(engine, requests, seed=1) == expected


@pytest.mark.parametrize(
    "params",
    [{"repetition_penalty": 1.2}, {"presence_penalty": 0.5}, {"bad_words": ((5, 6),)}],
    ids=str,
)
def test_nothing_is_begun_ahead_whose_logits_depend_on_the_last_token(
    make_ahead: MakeEngine, params: dict[str, object]
) -> None:
    engine = make_ahead()
    run_alone(engine, [make_request("r", max_tokens=20, ignore_eos=True, **params)])
    assert num_adopted(engine) == 0


def test_any_mixture_gets_the_answers_of_steps_in_turn(
    make_ahead: MakeEngine, make_engine: MakeEngine
) -> None:
    pairs = zip(random_requests(seed=6, num_requests=30), plain_requests(9, 30), strict=True)
    requests = [
        msgspec.structs.replace(request, request_id=str(i))
        for i, request in enumerate(chain.from_iterable(pairs))
    ]
    expected = run_alone(make_engine(), requests)

    engine = make_ahead(max_slots=2)
    assert run_together(engine, requests, seed=0) == expected
    assert num_adopted(engine) > 0


def test_least_lengths_count_the_token_that_nobody_has_read(
    make_ahead: MakeEngine, make_engine: MakeEngine
) -> None:
    """The likeliest token ends the answer as soon as it may."""
    ends = {"stop_token_ids": (9,), "logit_bias": {9: 100.0}, "min_tokens": 4, "max_tokens": 12}
    requests = [make_request("r", [5, 6, 7], temperature=0.0, **ends)]
    expected = run_alone(make_engine(), requests)
    engine = make_ahead()

    assert run_alone(engine, requests) == expected
    assert len(expected["r"].token_ids) == 5
    assert num_adopted(engine) == 4


def test_several_answers_to_a_prompt_go_on_ahead_from_its_copies(
    make_ahead: MakeEngine, make_engine: MakeEngine
) -> None:
    requests = [
        msgspec.structs.replace(
            make_request(f"r{i}", [5, 6, 7], seed=i, max_tokens=9, ignore_eos=True), group="g"
        )
        for i in range(4)
    ]
    expected = answers(run(make_engine(), requests))
    engine = make_ahead()
    for request in requests:
        engine.add_request(request)

    assert answers(run(engine, [])) == expected
    assert num_adopted(engine) == 4 * 8


def test_a_step_is_launched_before_the_tokens_of_the_last_are_read(
    make_ahead: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_ahead()
    runner: Any = engine._runner
    seen: list[str] = []
    hidden, wait = runner._runner.model.hidden, Readback.wait

    def launched(*args: Any) -> Tensor:
        seen.append("launch")
        return hidden(*args)

    def read(self: Readback) -> list[Tensor]:
        seen.append("read")
        return wait(self)

    monkeypatch.setattr(Readback, "wait", read)
    runner._runner._model.hidden = launched
    run(engine, [make_request("r", max_tokens=4, ignore_eos=True)])

    # The prompt, and ahead of it being text the next; then always one ahead, but for the last.
    assert seen == ["launch", "read", "launch", "launch", "read", "launch", "read", "read"]


def test_a_plan_that_is_executed_again_gets_the_same_tokens_again(make_ahead: MakeEngine) -> None:
    engine = make_ahead()
    engine.add_request(make_request("r", max_tokens=9, temperature=0.0, logprobs=0))
    engine.step()
    runner: Any = engine._runner
    pool, plan = runner._pool, engine.scheduler.schedule(0.0)
    states = pool.states.clone()

    first = runner.execute(plan)
    # Nobody has moved the sequence on, so what was begun is not what this plan wants.
    pool.commit([engine.scheduler.running["r"].slot])
    pool.states.copy_(states)
    assert runner.execute(plan) == first


def test_whoever_leaves_takes_nobody_along(make_ahead: MakeEngine, make_engine: MakeEngine) -> None:
    requests = plain_requests(seed=7, num_requests=30)
    expected = run_alone(make_engine(), requests)
    rng = random.Random(0)
    engine = make_ahead(max_slots=5)
    leaving = {request.request_id for request in requests if rng.random() < 0.4}
    waiting, outputs = list(requests), list[RequestOutput]()
    while waiting or engine.has_work:
        for _ in range(min(2, len(waiting))):
            engine.add_request(waiting.pop())
        outputs.extend(engine.step())
        for request_id in sorted(leaving & engine.scheduler.running.keys()):
            if rng.random() < 0.2:
                engine.abort(request_id)

    got = answers(outputs)

    for request_id in expected.keys() - leaving:
        assert got[request_id] == expected[request_id]
    assert engine.scheduler.slots.num_used == 0


@pytest.mark.parametrize("fault", ["exception", "nan"])
def test_a_culprit_fails_alone(make_ahead: MakeEngine, make_engine: MakeEngine, fault: str) -> None:
    requests = neighbours()
    expected = answers(run(make_engine(max_slots=16), requests))
    engine = make_ahead(max_slots=16)
    runner: Any = engine._runner
    faulty = FaultyModel(runner._runner._model, fault)
    faulty.needs_tiles = True  # type: ignore[attr-defined]
    runner._runner._model = faulty
    requests.insert(5, make_request("culprit", [5] * 90 + [BAD] + [5] * 9, temperature=0.0))

    got = answers(run(engine, requests))

    assert got.pop("culprit").finish_reason is FinishReason.ERROR
    assert got == expected
    assert num_adopted(engine) > 0


def test_a_poisoned_state_fails_alone_in_a_step_that_was_begun_ahead(
    make_ahead: MakeEngine, make_engine: MakeEngine
) -> None:
    requests = [
        make_request(str(i), [5 + i] * 10, seed=i, max_tokens=20, ignore_eos=True) for i in range(8)
    ]
    expected = answers(run(make_engine(), requests))
    engine = make_ahead()
    for request in requests:
        engine.add_request(request)
    outputs = engine.step() + engine.step()
    runner: Any = engine._runner
    pool, slot = runner._pool, engine.scheduler.running["3"].slot
    # What the step in flight has written, and the next one reads.
    pool.states[1, pool.target(slot), 0, 0, 0] = float("nan")

    while engine.has_work:
        outputs.extend(engine.step())
    got = answers(outputs)

    failed = got.pop("3")
    assert failed.finish_reason is FinishReason.ERROR
    assert 2 <= len(failed.token_ids) < 5
    assert got == {name: answer for name, answer in expected.items() if name != "3"}


def test_a_step_that_cannot_be_begun_ahead_is_computed_in_turn(
    make_ahead: MakeEngine, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = plain_requests(seed=8, num_requests=8)
    expected = run_alone(make_engine(), requests)
    engine = make_ahead()
    rng, compute = random.Random(0), LookAheadRunner._compute

    def fail_sometimes(self: LookAheadRunner, *args: Any) -> Any:
        found = compute(self, *args)
        # At the worst moment: every state is written.
        if rng.random() < 0.5:
            raise MemoryError("planted")
        return found

    monkeypatch.setattr(LookAheadRunner, "_compute", fail_sometimes)

    assert run_together(engine, requests, seed=0) == expected
    assert num_adopted(engine) > 0


def test_tokens_that_cannot_be_read_fail_their_requests_and_the_engine_goes_on(
    make_ahead: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_ahead()
    for i in range(3):
        engine.add_request(make_request(f"r{i}", max_tokens=20, ignore_eos=True))
    outputs = engine.step()
    with monkeypatch.context() as patch:
        patch.setattr(Readback, "wait", lambda self: 1 / 0)
        outputs += engine.step()
    ended = answers(outputs)
    assert {answer.finish_reason for answer in ended.values()} == {FinishReason.ERROR}
    assert not engine.has_work

    [last] = answers(run(engine, [make_request("later", max_tokens=3, ignore_eos=True)])).values()
    assert len(last.token_ids) == 3
