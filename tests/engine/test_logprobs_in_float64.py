"""Logprobs against a model whose attention goes token by token in float64."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dijiang_runtime.engine.engine import Engine
from dijiang_runtime.models.loader import load_model
from dijiang_runtime.ops import reference
from dijiang_runtime.ops.windowed import WindowInputs
from dijiang_runtime.request import SamplingParams
from tests.engine.requests import NUM_TOKENS
from tests.ops.formula import windowed_by_formula
from tests.small_models import FAMILIES

MakeEngine = Callable[..., Engine]
FLOAT32_ROUNDING = 2e-5
"""Of a log-softmax over logits of a few units, after some hundred rounded sums in two layers."""


class TokenByToken:
    """One whole sequence in float64, by the reference operators."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> Tensor:
        empty = k.new_zeros(1, k.shape[1], k.shape[2], v.shape[2])
        return reference.chunk(q[None], k[None], v[None], log_decay, empty)[0][0]

    def attend_windowed(self, layer: int, inputs: WindowInputs, positions: Tensor) -> Tensor:
        return windowed_by_formula(inputs)


def read(folder: Path, token_ids: Sequence[int]) -> Tensor:
    """The logprobs [T, V] that follow each token, in float64."""
    model = load_model(folder).double()
    with torch.inference_mode():
        positions = torch.arange(len(token_ids))
        hidden = model.hidden(torch.tensor(token_ids), positions, TokenByToken())
        logprobs = model.logits(hidden).log_softmax(dim=-1)
    assert logprobs.dtype == torch.float64
    return logprobs


@pytest.mark.parametrize("family", FAMILIES)
def test_logprobs_of_prompt_and_answer_are_those_of_float64(
    make_engine: MakeEngine, make_tiny_model: Callable[..., Path], family: str
) -> None:
    folder = make_tiny_model(**FAMILIES[family])
    generator = torch.Generator().manual_seed(3)
    prompt = torch.randint(NUM_TOKENS, (150,), generator=generator).tolist()
    sampling = SamplingParams(max_tokens=30, seed=5, ignore_eos=True, logprobs=5, prompt_logprobs=5)

    [output] = make_engine(model=folder).generate([prompt], sampling)

    expected = read(folder, [*prompt, *output.token_ids])
    assert output.logprobs is not None and output.prompt_logprobs is not None
    positions = [*output.prompt_logprobs[1:], *output.logprobs]
    assert len(positions) == 179
    for row, entry in zip(expected, positions, strict=False):
        assert entry is not None
        for token in (entry.chosen, *entry.top):
            truth = row[token.token_id].item()
            assert token.logprob == pytest.approx(truth, abs=FLOAT32_ROUNDING)
        # The likeliest are the likeliest, up to ties within the rounding.
        fifth = row.topk(5).values[-1].item()
        assert all(row[t.token_id].item() >= fifth - FLOAT32_ROUNDING for t in entry.top)
