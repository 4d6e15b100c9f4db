"""The engine on a GPU: the same answers alone and among others, and nearly those of the CPU."""

import random
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch

from dijiang_runtime.config import EngineConfig
from dijiang_runtime.engine.engine import Engine
from dijiang_runtime.engine.sampler import Sampler
from dijiang_runtime.request import SamplingParams
from tests.engine.requests import random_requests
from tests.engine.test_determinism import run_alone, run_together
from tests.engine.test_lookahead import plain_requests
from tests.engine.test_sampler import EOS, kernels, random_case
from tests.small_models import FAMILIES

pytestmark = pytest.mark.gpu

MakeEngine = Callable[..., Engine]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_neighbours_do_not_matter(make_engine: MakeEngine, dtype: str) -> None:
    requests = random_requests(seed=1, num_requests=48)
    expected = run_alone(make_engine(dtype=dtype), requests)

    for seed in range(3):
        engine = make_engine(dtype=dtype, max_slots=random.Random(seed).choice((7, 33, 48)))
        assert run_together(engine, requests, seed=seed) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_neighbours_do_not_matter_in_any_family(
    make_engine: MakeEngine, make_tiny_model: Callable[..., Path], family: str
) -> None:
    if family == "window":
        pytest.skip("its softmax runs in torch, which promises nothing on a GPU")
    model = make_tiny_model(**FAMILIES[family])
    requests = random_requests(seed=2, num_requests=20)
    expected = run_alone(make_engine(model=model), requests)

    assert run_together(make_engine(model=model), requests, seed=1) == expected


@pytest.mark.parametrize("option", ["cuda_graphs", "async_scheduling"])
def test_neither_recording_nor_looking_ahead_changes_a_bit(
    make_engine: MakeEngine, option: str
) -> None:
    requests = random_requests(seed=3, num_requests=24) + plain_requests(seed=3, num_requests=24)
    for i, request in enumerate(requests):
        requests[i] = msgspec.structs.replace(request, request_id=str(i))
    expected = run_together(make_engine(**{option: False}), requests, seed=0)

    assert run_together(make_engine(), requests, seed=0) == expected


@pytest.mark.parametrize("max_batched_tokens", [64, 100])
def test_a_prompt_may_be_split_anywhere(make_engine: MakeEngine, max_batched_tokens: int) -> None:
    requests = random_requests(seed=4, num_requests=24)
    expected = run_alone(make_engine(), requests)

    engine = make_engine(max_batched_tokens=max_batched_tokens)

    assert run_together(engine, requests, seed=0) == expected


def test_logprobs_are_nearly_those_of_the_cpu(make_engine: MakeEngine, tiny_model: Path) -> None:
    sampling = SamplingParams(max_tokens=0, prompt_logprobs=0)
    prompts = [[(7 * i + n) % 384 for i in range(n)] for n in (2, 63, 64, 65, 200)]
    on_cpu = Engine.from_config(
        EngineConfig(model=tiny_model, device="cpu", dtype="float32", num_threads=1)
    )

    for ours, theirs in zip(
        make_engine().generate(prompts, sampling), on_cpu.generate(prompts, sampling), strict=True
    ):
        for a, b in zip(ours.prompt_logprobs or (), theirs.prompt_logprobs or (), strict=True):
            assert (a is None) == (b is None)
            if a and b:
                assert a.chosen.logprob == pytest.approx(b.chosen.logprob, abs=1e-3)


@pytest.mark.parametrize("vocab_size", [400, 50_304])
def test_the_device_draws_the_tokens_that_the_cpu_draws(vocab_size: int) -> None:
    rng = random.Random(vocab_size)
    cases = [random_case(rng, vocab_size) for _ in range(100)]
    logits, sequences = torch.stack([x for x, _ in cases]), [sequence for _, sequence in cases]

    theirs = Sampler(EOS, kernels()).sample(logits.clone(), sequences)
    ours = Sampler(EOS).sample(logits.cuda(), sequences)

    assert [token.token_id for token in ours] == [token.token_id for token in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert (a.logprobs is None) == (b.logprobs is None)
        if a.logprobs and b.logprobs:
            assert a.logprobs.top_ids == b.logprobs.top_ids
            assert a.logprobs.logprob == pytest.approx(b.logprobs.logprob, abs=1e-4)


def test_a_row_is_drawn_the_same_in_any_batch() -> None:
    rng = random.Random(6)
    cases = [random_case(rng, 5003) for _ in range(300)]
    sampler = Sampler(EOS)
    alone = [sampler.sample(x[None].cuda(), [sequence])[0] for x, sequence in cases]
    for size in (2, 33, 300):
        chosen = rng.sample(range(300), size)
        logits = torch.stack([cases[i][0] for i in chosen]).cuda()
        assert sampler.sample(logits, [cases[i][1] for i in chosen]) == [alone[i] for i in chosen]


def test_choosing_tokens_waits_for_nothing(forbid_waiting: Callable[[], None]) -> None:
    rng = random.Random(7)
    cases = [random_case(rng, 5003) for _ in range(60)]
    logits, sequences = torch.stack([x for x, _ in cases]).cuda(), [s for _, s in cases]
    forbid_waiting()
    pending = Sampler(EOS).on_device.launch(logits, sequences)
    torch.cuda.set_sync_debug_mode("default")
    assert len(pending.read()[0]) == 60
