"""A step is a transaction: what fails in it fails alone, and changes nothing else."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dijiang_runtime.engine.engine import Engine
from dijiang_runtime.ops.cpu.library import NO_TARGET, TARGET_VARIABLE
from dijiang_runtime.request import FinishReason, Request, RequestOutput
from tests.engine.requests import NUM_TOKENS, make_request, random_requests
from tests.engine.test_determinism import answers

MakeEngine = Callable[..., Engine]
BAD = NUM_TOKENS - 1
"""A token that no prompt holds and no answer may contain, but that of the culprit."""


class FaultyModel:
    """A model that breaks when it reads the token `BAD`."""

    def __init__(self, model: Any, fault: str) -> None:
        self._model = model
        self.config = model.config
        self._fault = fault
        self.num_faults = 0

    def hidden(self, token_ids: Tensor, positions: Tensor, recurrence: Any, tiles: Any) -> Tensor:
        hidden = self._model.hidden(token_ids, positions, recurrence, tiles)
        is_bad = token_ids == BAD
        if is_bad.any():
            self.num_faults += 1
            if self._fault == "exception":
                raise RuntimeError("planted")
            if self._fault in ("nan", "inf"):
                hidden[is_bad] = float(self._fault)
        return hidden

    def logits(self, hidden: Tensor, tiles: Any) -> Tensor:
        return self._model.logits(hidden, tiles)


def neighbours() -> list[Request]:
    """Requests that never see the token `BAD`."""
    clean = []
    for request in random_requests(seed=3, num_requests=20):
        prompt = tuple(token_id % BAD for token_id in request.prompt_token_ids)
        sampling = request.sampling
        clean.append(
            make_request(
                request.request_id,
                prompt,
                max_tokens=sampling.max_tokens,
                temperature=sampling.temperature,
                seed=sampling.seed,
                logprobs=2,
                logit_bias={BAD: -100.0},
            )
        )
    return clean


def run(engine: Engine, requests: list[Request]) -> list[RequestOutput]:
    outputs = []
    waiting = list(requests)
    while waiting or engine.has_work:
        for _ in range(min(3, len(waiting))):
            engine.add_request(waiting.pop(0))
        outputs.extend(engine.step())
    return outputs


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("fault", ["exception", "nan", "inf"])
@pytest.mark.parametrize("phase", ["first chunk", "last chunk", "decode"])
def test_a_culprit_fails_alone_and_its_neighbours_do_not_notice(
    make_engine: MakeEngine, fault: str, phase: str
) -> None:
    expected = answers(run(make_engine(max_slots=16), neighbours()))
    engine = make_engine(max_slots=16)
    faulty = FaultyModel(engine._runner._model, fault)  # type: ignore[attr-defined]
    engine._runner._model = faulty  # type: ignore[attr-defined]
    prompt = {
        "first chunk": [5, BAD] + [5] * 98,
        "last chunk": [5] * 90 + [BAD] + [5] * 9,
        "decode": [5] * 100,
    }[phase]
    # In its answer, the culprit says nothing but the bad token.
    culprit = make_request("culprit", prompt, temperature=0.0, logit_bias={BAD: 100.0})
    requests = neighbours()
    requests.insert(5, culprit)

    got = answers(run(engine, requests))

    last = got.pop("culprit")
    assert last.finish_reason is FinishReason.ERROR
    assert len(last.token_ids) == (1 if phase == "decode" else 0)
    assert got == expected
    assert faulty.num_faults > 0
    assert engine.scheduler.slots.num_used == 0


@pytest.mark.parametrize(("fault", "kind"), [("exception", "Request"), ("nan", "Numerical")])
def test_the_error_says_what_kind_it_was_and_nothing_of_the_inside(
    make_engine: MakeEngine, fault: str, kind: str
) -> None:
    engine = make_engine()
    engine._runner._model = FaultyModel(engine._runner._model, fault)  # type: ignore[attr-defined]

    [output] = run(engine, [make_request("culprit", [BAD])])

    assert output.error is not None
    assert output.error.kind.startswith(kind)
    assert "planted" not in output.error.message


def test_a_fault_that_passes_costs_nobody_anything(make_engine: MakeEngine) -> None:
    expected = answers(run(make_engine(), neighbours()))
    engine = make_engine()
    runner: Any = engine._runner
    rng, run_batch, commit = random.Random(0), runner._run_batch, runner._pool.commit
    num_faults = 0

    def fail_sometimes(items: Any, forks: Any) -> Any:
        nonlocal num_faults
        if len(items) == 1 or rng.random() > 0.5:
            return run_batch(items, forks)
        # At the worst moment: every state is written, none is committed.
        num_faults += 1
        runner._pool.commit = lambda slots: None
        run_batch(items, forks)
        runner._pool.commit = commit
        raise MemoryError("planted")

    runner._run_batch = fail_sometimes
    got = answers(run(engine, neighbours()))

    assert num_faults > 5
    assert got == expected


@pytest.mark.usefixtures("implementation")
def test_a_poisoned_state_ends_its_own_sequence_only(make_engine: MakeEngine) -> None:
    requests = [make_request(str(i), [5 + i] * 10, seed=i, max_tokens=20) for i in range(8)]
    expected = answers(run(make_engine(), requests))
    engine = make_engine()
    for request in requests:
        engine.add_request(request)
    outputs = engine.step() + engine.step()
    pool = engine._runner._pool  # type: ignore[attr-defined]
    slot = engine.scheduler.running["3"].slot
    pool.states[1, pool.source(slot), 0, 0, 0] = float("nan")

    while engine.has_work:
        outputs.extend(engine.step())
    got = answers(outputs)

    assert got.pop("3").finish_reason is FinishReason.ERROR
    assert got == {name: answer for name, answer in expected.items() if name != "3"}


class Corrupting:
    """A recurrence whose next state of the one sequence in it is damaged after the read-out."""

    def __init__(self, recurrence: Any, layer: int) -> None:
        self._recurrence, self._layer = recurrence, layer
        self.finite_rows = recurrence.finite_rows

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> Tensor:
        if layer == self._layer and len(self._recurrence.prefills):
            # So large that its sum over the prompt overflows, while what is read stays small.
            q, k = q * 0.0, torch.full_like(k, 3e38)
        return self._recurrence.attend(layer, q, k, v, log_decay)


@pytest.mark.parametrize("layer", [0, 1])
def test_a_state_that_no_output_shows_fails_in_the_step_that_makes_it(
    make_engine: MakeEngine, layer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Only torch's recurrence can be wrapped; of the compiled one, see tests/models/test_compiled.
    monkeypatch.setenv(TARGET_VARIABLE, NO_TARGET)
    engine = make_engine()
    model = engine._runner._model  # type: ignore[attr-defined]

    class Model:
        config = model.config
        logits = staticmethod(model.logits)

        @staticmethod
        def hidden(ids: Tensor, positions: Tensor, recurrence: Any, tiles: Any) -> Tensor:
            hidden = model.hidden(ids, positions, Corrupting(recurrence, layer), tiles)
            assert hidden.isfinite().all()
            return hidden

    engine._runner._model = Model  # type: ignore[attr-defined]

    engine.add_request(make_request("r", [5] * 10))
    [output] = engine.step()

    assert output.error is not None
    assert output.error.kind == "NumericalError"


@pytest.mark.usefixtures("implementation")
def test_an_infinite_feature_mass_fails_in_the_step_that_reads_it(make_engine: MakeEngine) -> None:
    """It divides the read-out to 0, so that the model's output is finite."""
    engine = make_engine()
    engine.add_request(make_request("r", [5] * 10, max_tokens=20))
    engine.step()
    pool = engine._runner._pool  # type: ignore[attr-defined]
    pool.states[1, pool.source(engine.scheduler.running["r"].slot), 0, :, -1] = float("inf")

    [output] = engine.step()

    assert output.error is not None
    assert output.error.kind == "NumericalError"


def test_a_reused_slot_remembers_nothing(make_engine: MakeEngine) -> None:
    requests = [make_request(str(i), [5 + i] * 10, seed=i, max_tokens=5) for i in range(12)]
    expected = answers(run(make_engine(), requests))
    engine = make_engine(max_slots=2)
    pool = engine._runner._pool  # type: ignore[attr-defined]
    outputs = []
    for request in requests:
        engine.add_request(request)
        # Whatever nobody owns is garbage; row 0 is what padding reads.
        owned = [pool.source(s.slot) for s in engine.scheduler.running.values()]
        free = [row for row in range(1, pool.states.shape[1]) if row not in owned]
        pool.states[:, torch.tensor(free)] = float("nan")
        outputs.extend(engine.step())
    while engine.has_work:
        outputs.extend(engine.step())

    assert answers(outputs) == expected


def test_padding_never_touches_what_padding_reads(make_engine: MakeEngine) -> None:
    engine = make_engine()

    run(engine, neighbours())

    states = engine._runner._pool.states  # type: ignore[attr-defined]
    assert not states[:, 0].any()
