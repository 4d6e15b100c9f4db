"""The fused decoder against the torch decoder: in Triton's interpreter, or on a GPU."""

import copy

import pytest
import torch
from torch import Tensor

from dijiang_runtime.models.decoder import Decoder
from dijiang_runtime.models.fused import FusedDecoder
from dijiang_runtime.models.recurrence import PooledRecurrence, PrefillSegment
from tests.small_models import FAMILIES, VOCAB_SIZE, make_decoder

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LENGTH = 70
NAMES = ("gpt_neox", "official", "decay-tables", "llama", "qwen3", "opt-350m")


def make_model(name: str) -> Decoder:
    return make_decoder(**FAMILIES[name]).to(DEVICE)


def tokens() -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(VOCAB_SIZE, (LENGTH + 1,), generator=generator).to(DEVICE)


def run(fused: FusedDecoder, states: Tensor, others: int) -> Tensor:
    """Logits of a prompt's every token and of one decode after it, among `others` like it."""
    ids, empty = tokens(), torch.zeros(0, dtype=torch.int64, device=DEVICE)
    num = LENGTH * (1 + others)
    segments = [PrefillSegment(i * LENGTH, LENGTH, 2 * i, 2 * i + 1) for i in range(1 + others)]
    prompts = torch.cat([ids[:LENGTH], ids[:LENGTH].roll(7).repeat(others)])
    positions = torch.arange(LENGTH, device=DEVICE).repeat(1 + others)
    prefill = PooledRecurrence(states, empty, empty, segments)
    hidden = fused.hidden(prompts, positions, prefill)
    assert prefill.finite_rows().tolist() == [True] * num
    rows = torch.arange(1 + others, device=DEVICE)
    decode = PooledRecurrence(states, 2 * rows + 1, 2 * rows)
    last = fused.hidden(ids[-1:].repeat(1 + others), torch.full_like(rows, LENGTH), decode)
    assert decode.finite_rows().tolist() == [True] * (1 + others)
    return fused.logits(torch.cat([hidden[:LENGTH], last[:1]]))


@pytest.mark.parametrize("name", NAMES)
def test_prompt_and_decode_are_those_of_the_torch_decoder(name: str) -> None:
    model = make_model(name)
    truth = copy.deepcopy(model).double()(tokens()[None])[0]
    fused = FusedDecoder(model)
    states = torch.zeros(model.config.state.state_shape(2), device=DEVICE)

    logits = run(fused, states, others=0)

    assert float((logits.double() - truth).norm() / truth.norm()) < 5e-6


def test_bits_do_not_depend_on_the_neighbours() -> None:
    model = make_model("gpt_neox")
    fused = FusedDecoder(model)
    shape = model.config.state.state_shape

    alone = run(fused, torch.zeros(shape(2), device=DEVICE), others=0)
    together = run(fused, torch.zeros(shape(6), device=DEVICE), others=2)

    assert torch.equal(alone, together)


def test_a_mixed_step_is_its_decodes_and_its_prompts() -> None:
    model = make_model("gpt_neox")
    fused = FusedDecoder(model)
    states = torch.zeros(model.config.state.state_shape(4), device=DEVICE)
    ids, positions = tokens()[:6], torch.tensor([9, 0, 1, 2, 3, 4], device=DEVICE)
    source, target = torch.tensor([0], device=DEVICE), torch.tensor([1], device=DEVICE)
    segments = [PrefillSegment(1, 5, 2, 3)]

    mixed = fused.hidden(ids, positions, PooledRecurrence(states, source, target, segments))

    decode = PooledRecurrence(states, source, target)
    prompt = PooledRecurrence(states, source[:0], target[:0], [PrefillSegment(0, 5, 2, 3)])
    apart = [
        fused.hidden(ids[:1], positions[:1], decode),
        fused.hidden(ids[1:], positions[1:], prompt),
    ]
    assert torch.equal(mixed, torch.cat(apart))
