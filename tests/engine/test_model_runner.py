"""The engine computes what the model's plain forward pass computes."""

import resource
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dijiang_runtime.engine.engine import Engine
from dijiang_runtime.models.loader import load_model
from dijiang_runtime.request import SamplingParams
from tests.engine.requests import NUM_TOKENS, make_request
from tests.small_models import FAMILIES

MakeEngine = Callable[..., Engine]
GREEDY = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True, logprobs=4)


def prompt_of(length: int) -> list[int]:
    return torch.randint(
        NUM_TOKENS, (length,), generator=torch.Generator().manual_seed(length)
    ).tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_answers_and_logprobs_are_those_of_the_forward_pass(
    make_engine: MakeEngine, make_tiny_model: Callable[..., Path], family: str
) -> None:
    folder = make_tiny_model(**FAMILIES[family])
    model = load_model(folder)
    prompts = [prompt_of(n) for n in (1, 2, 63, 64, 65, 130, 200)]

    outputs = make_engine(model=folder).generate(prompts, GREEDY)

    for prompt, output in zip(prompts, outputs, strict=True):
        assert output.logprobs is not None
        ids = [*prompt, *output.token_ids]
        logprobs = model(torch.tensor([ids]))[0].log_softmax(dim=-1)
        for i, entry in enumerate(output.logprobs):
            expected = logprobs[len(prompt) - 1 + i]
            assert expected.argmax() == entry.chosen.token_id == entry.top[0].token_id
            for token in entry.top:
                assert token.logprob == pytest.approx(expected[token.token_id].item(), abs=2e-4)


def test_prompt_logprobs_are_those_of_the_forward_pass(
    make_engine: MakeEngine, tiny_model: Path
) -> None:
    model = load_model(tiny_model)
    sampling = SamplingParams(max_tokens=0, prompt_logprobs=3)

    for length in (1, 2, 17, 64, 65, 200):
        prompt = prompt_of(length)
        [output] = make_engine(max_batched_tokens=64).generate([prompt], sampling)
        logprobs = model(torch.tensor([prompt]))[0].log_softmax(dim=-1)

        assert output.prompt_logprobs is not None
        nothing, *scored = output.prompt_logprobs
        assert nothing is None
        assert len(scored) == length - 1
        for i, entry in enumerate(scored):
            assert entry is not None
            assert entry.chosen.token_id == prompt[i + 1]
            for token in (entry.chosen, *entry.top):
                expected = logprobs[i, token.token_id].item()
                assert token.logprob == pytest.approx(expected, abs=2e-4)


def test_half_precision_weights_give_nearly_the_same_answers(make_engine: MakeEngine) -> None:
    prompts = [prompt_of(n) for n in (5, 70)]
    sampling = SamplingParams(max_tokens=0, prompt_logprobs=0)

    for full, half in zip(
        make_engine().generate(prompts, sampling),
        make_engine(dtype="bfloat16").generate(prompts, sampling),
        strict=True,
    ):
        for a, b in zip(full.prompt_logprobs or (), half.prompt_logprobs or (), strict=True):
            assert (a is None) == (b is None)
            if a and b:
                assert a.chosen.logprob == pytest.approx(b.chosen.logprob, abs=0.5)


def test_a_prompt_of_100_000_tokens_needs_no_more_memory_than_a_short_one(
    make_engine: MakeEngine,
) -> None:
    engine = make_engine(max_slots=2, max_batched_tokens=512)
    [short] = engine.generate([prompt_of(600)], GREEDY)
    peak_before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    engine.add_request(
        make_request("long", prompt_of(100_000), max_tokens=20, temperature=0.0, ignore_eos=True)
    )

    outputs = []
    while engine.has_work:
        outputs.extend(engine.step())

    assert outputs[-1].num_output_tokens == 20
    assert short.num_output_tokens == 12
    # The prompt itself, as a list of numbers, is a few MiB; a state for each token would be GiB.
    peak_after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert peak_after - peak_before < 32 * 1024


def test_a_token_late_in_a_sequence_costs_what_an_early_one_does(make_engine: MakeEngine) -> None:
    engine = make_engine(max_slots=1)

    def seconds_per_token(prompt: list[int]) -> float:
        engine.add_request(make_request("r", prompt, max_tokens=200, ignore_eos=True))
        while not engine.step():
            pass
        steps = []
        while engine.has_work:
            started = time.perf_counter()
            engine.step()
            steps.append(time.perf_counter() - started)
        return sorted(steps)[len(steps) // 4]

    early, late = seconds_per_token(prompt_of(5)), seconds_per_token(prompt_of(30_000))

    # Generous, because other programs share the machine: attention would cost a hundredfold.
    assert late < 2 * early
