"""A step as it runs on a GPU: fused kernels, recorded decodes, tokens chosen where the logits are.

In Triton's interpreter, with a stand-in for the recorder, so that nothing here needs CUDA.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from dijiang_runtime.engine.engine import Engine
from dijiang_runtime.engine.lookahead import LookAheadRunner
from dijiang_runtime.engine.model_runner import ModelRunner
from dijiang_runtime.models.fused import FusedDecoder
from dijiang_runtime.models.graphed import GraphedDecoder
from dijiang_runtime.models.loader import load_model
from dijiang_runtime.ops.cpu.library import NO_TARGET, TARGET_VARIABLE
from dijiang_runtime.request import FinishReason, Request
from tests.engine.requests import make_request
from tests.engine.test_determinism import answers, run_alone, run_together
from tests.models.test_graphed import Recorder

MakeEngine = Callable[..., Engine]


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture(scope="module")
def least_model(make_tiny_model: Callable[..., Path]) -> Path:
    """The interpreter takes its time."""
    heads = {"num_heads": 2, "num_kv_heads": 2, "hidden_size": 32}
    return make_tiny_model(**heads, intermediate_size=32, num_layers=1)


@pytest.fixture
def make_device_engine(
    make_engine: MakeEngine,
    least_model: Path,
    recorder: Recorder,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[], Engine]:
    monkeypatch.setenv(TARGET_VARIABLE, NO_TARGET)

    def make() -> Engine:
        engine = make_engine(model=least_model, max_slots=4)
        runner: Any = engine._runner
        pool = runner._pool
        fused = FusedDecoder(load_model(least_model))
        runner._model = GraphedDecoder(fused, pool.states, pool.scratch, recorder, [1, 4])
        runner._needs_tiles = False
        return engine

    return make


def some_requests() -> list[Request]:
    return [
        make_request("greedy", [5, 6, 7], max_tokens=3, temperature=0.0, logprobs=2),
        make_request("drawn", [9] * 4, max_tokens=2, seed=1, top_k=20, top_p=0.9),
        make_request("penalised", [9, 3], max_tokens=3, seed=2, repetition_penalty=1.3),
        make_request("allowed", [4], max_tokens=2, seed=3, allowed_token_ids=(70, 71, 72)),
    ]


def test_a_request_gets_the_same_bits_alone_and_among_others(
    make_device_engine: Callable[[], Engine], recorder: Recorder
) -> None:
    requests = some_requests()
    expected = run_alone(make_device_engine(), requests)
    num_alone = recorder.num_replays

    assert run_together(make_device_engine(), requests, seed=0) == expected
    assert {a.finish_reason for a in expected.values()} <= {FinishReason.LENGTH, FinishReason.STOP}
    assert sum(len(a.token_ids) for a in expected.values()) > 6
    assert set(expected["allowed"].token_ids) <= {70, 71, 72}
    # Decodes were replayed, in either run.
    assert recorder.num_replays > num_alone > 0


def test_a_step_that_is_begun_ahead_is_replayed_too(
    make_device_engine: Callable[[], Engine], recorder: Recorder
) -> None:
    # A penalty would have the next step wait for the last token.
    requests = some_requests()[:2]
    expected = run_alone(make_device_engine(), requests)
    num_alone = recorder.num_replays
    engine = make_device_engine()
    engine._runner = runner = LookAheadRunner(cast(ModelRunner, engine._runner))

    assert run_together(engine, requests, seed=0) == expected

    assert runner.num_adopted > 0
    assert recorder.num_replays > num_alone


def test_answers_are_those_of_the_torch_decoder(
    make_device_engine: Callable[[], Engine], make_engine: MakeEngine, least_model: Path
) -> None:
    requests = some_requests()[:2]

    ours = run_alone(make_device_engine(), requests)
    torchs = run_alone(make_engine(model=least_model), requests)

    for request in requests:
        assert ours[request.request_id].token_ids == torchs[request.request_id].token_ids


def test_a_poisoned_state_fails_alone(make_device_engine: Callable[[], Engine]) -> None:
    requests = [make_request(str(i), [5 + i] * 3, seed=i, max_tokens=2) for i in range(3)]
    expected = run_alone(make_device_engine(), requests)
    engine = make_device_engine()
    for request in requests:
        engine.add_request(request)
    outputs = engine.step()
    runner: Any = engine._runner
    slot = engine.scheduler.running["1"].slot
    runner._pool.states[0, runner._pool.source(slot), 0, 0, 0] = float("nan")

    while engine.has_work:
        outputs.extend(engine.step())
    got = answers(outputs)

    assert got.pop("1").finish_reason is FinishReason.ERROR
    assert got == {name: answer for name, answer in expected.items() if name != "1"}
