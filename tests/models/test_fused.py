"""The fused decoder against the torch decoder: in Triton's interpreter, or on a GPU."""

import copy

import pytest
import torch
from torch import Tensor

from dijiang_runtime.models.config import AttentionConfig, ModelConfig
from dijiang_runtime.models.decoder import Decoder
from dijiang_runtime.models.fused import FusedDecoder
from dijiang_runtime.models.presets import attention_config
from dijiang_runtime.models.recurrence import PooledRecurrence, PrefillSegment

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LENGTH = 70
MODELS: dict[str, dict[str, object]] = {
    "gpt_neox": {},
    "official": {
        "preset": "official",
        "attention": AttentionConfig(num_features=16, num_groups=16),
    },
    "decay-tables": {
        "preset": "official",
        "attention": AttentionConfig(num_features=16, num_groups=16, decay_tables=True),
    },
    "llama": {
        "family": "llama",
        "parallel_residual": False,
        "norm": "rmsnorm",
        "activation": "silu",
        "gated_mlp": True,
        "mlp_bias": False,
        "qkv_bias": False,
        "out_bias": False,
        "num_kv_heads": 2,
        "rotary_dim": 16,
        "qk_norm": True,
        "tie_word_embeddings": True,
    },
    "opt-350m": {
        "family": "opt",
        "parallel_residual": False,
        "rotary_dim": 0,
        "activation": "relu",
        "learned_positions": True,
        "query_scale": 0.25,
        "norm_first": False,
        "final_norm": False,
        "embedding_dim": 32,
    },
}


def make_model(name: str) -> Decoder:
    fields: dict[str, object] = {
        "family": "gpt_neox",
        "preset": "dijiang",
        "vocab_size": 97,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 4,
        "head_dim": 16,
        "max_position_embeddings": 256,
        "attention": attention_config("dijiang", 16),
        "parallel_residual": True,
        "rotary_dim": 4,
    }
    torch.manual_seed(0)
    model = Decoder(ModelConfig(**{**fields, **MODELS[name]}))
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    return model.eval().requires_grad_(False).to(DEVICE)


def tokens() -> Tensor:
    return torch.randint(97, (LENGTH + 1,), generator=torch.Generator().manual_seed(3)).to(DEVICE)


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


@pytest.mark.parametrize("name", MODELS)
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
