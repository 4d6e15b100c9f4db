"""The embedding of a prompt, against the model's plain forward pass."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from dijiang_runtime.engine.engine import Engine
from dijiang_runtime.errors import InvalidRequestError
from dijiang_runtime.models.loader import load_model
from dijiang_runtime.models.recurrence import FreshSequences
from dijiang_runtime.request import FinishReason, Request, RequestOutput, SamplingParams
from tests.engine.requests import NUM_TOKENS, random_requests

MakeEngine = Callable[..., Engine]


def request_for(prompt: list[int], name: str = "e") -> Request:
    sampling = SamplingParams(max_tokens=0)
    return Request(
        request_id=name,
        prompt_token_ids=tuple(prompt),
        sampling=sampling,
        arrival_time=0.0,
        embed=True,
    )


def run(engine: Engine, requests: list[Request]) -> dict[str, RequestOutput]:
    for request in requests:
        engine.add_request(request)
    outputs = {}
    while engine.has_work:
        outputs |= {output.request_id: output for output in engine.step()}
    return outputs


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randint(NUM_TOKENS, (n,), generator=generator).tolist()
        for n in (1, 2, 63, 64, 65, 130, 300)
    ]


def test_it_is_the_mean_of_the_last_hidden_states(
    make_engine: MakeEngine, tiny_model: Path
) -> None:
    model, engine = load_model(tiny_model), make_engine()
    for prompt in prompts():
        [output] = run(engine, [request_for(prompt)]).values()

        with torch.inference_mode():
            length = len(prompt)
            states = FreshSequences(1, length)
            hidden = model.hidden(torch.tensor(prompt), torch.arange(length), states).double()
        expected = torch.nn.functional.normalize(hidden.mean(dim=0), dim=0)
        assert output.finish_reason is FinishReason.LENGTH
        assert output.token_ids == () and output.embedding is not None
        found = np.frombuffer(output.embedding, "<f4")
        assert found == pytest.approx(expected.numpy(), abs=2e-5)
        assert np.linalg.norm(found) == pytest.approx(1.0, abs=1e-6)
        assert len(found) == engine.info.hidden_size


@pytest.mark.parametrize("max_batched_tokens", [64, 100, 512])
def test_neighbours_and_splits_do_not_change_a_bit(
    make_engine: MakeEngine, max_batched_tokens: int
) -> None:
    wanted = [request_for(prompt, f"e-{i}") for i, prompt in enumerate(prompts())]
    alone = {
        request.request_id: run(make_engine(), [request])[request.request_id].embedding
        for request in wanted
    }
    engine = make_engine(max_batched_tokens=max_batched_tokens)

    got = run(engine, [*random_requests(seed=5, num_requests=20), *wanted])

    assert {name: got[name].embedding for name in alone} == alone


def test_an_embedding_has_no_answer(make_engine: MakeEngine) -> None:
    request = request_for([1, 2])
    sampling = msgspec.structs.replace(request.sampling, max_tokens=3)
    with pytest.raises(InvalidRequestError):
        make_engine().add_request(msgspec.structs.replace(request, sampling=sampling))
