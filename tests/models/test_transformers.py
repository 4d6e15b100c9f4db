"""Our folders under transformers' Auto classes."""

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from dijiang_runtime.config import EngineConfig
from dijiang_runtime.engine.engine import Engine
from dijiang_runtime.errors import ModelLoadError
from dijiang_runtime.models.loader import load_model
from dijiang_runtime.models.presets import attention_config
from dijiang_runtime.request import SamplingParams

PROMPTS = [[5, 9, 30, 7], [11], [40, 41, 42, 43, 44, 45, 46, 47]]
# Some of the prompts and answers are longer than this.
WINDOW = dataclasses.replace(attention_config("dijiang+window", 16), window=5, sinks=2)


@pytest.fixture(scope="module", params=["dijiang", "dijiang+window"])
def folder(request, tiny_model: Path, make_tiny_model: Callable[..., Path]) -> Path:
    if request.param == "dijiang":
        return tiny_model
    return make_tiny_model(preset=request.param, attention=WINDOW)


@pytest.fixture
def model(folder: Path):
    return AutoModelForCausalLM.from_pretrained(folder)


def generate(model, ids: list[list[int]], **options) -> list[list[int]]:
    tokens = torch.tensor(ids)
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, **options}
    options.setdefault("attention_mask", torch.ones_like(tokens))
    output = model.generate(tokens, pad_token_id=0, **options)
    return output[:, tokens.shape[1] :].tolist()


def test_importing_the_package_is_enough(tiny_model: Path) -> None:
    program = (
        "import sys, dijiang_runtime\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
        "from transformers import AutoModelForCausalLM\n"
        "print(type(AutoModelForCausalLM.from_pretrained(sys.argv[1])).__name__)\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", program, str(tiny_model)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "DiJiangForCausalLM"


def test_logits_are_the_decoders(model, folder: Path) -> None:
    ids = torch.tensor([PROMPTS[2], PROMPTS[2][::-1]])
    with torch.inference_mode():
        assert torch.allclose(model(ids).logits, load_model(folder)(ids), atol=1e-5)


def test_a_call_goes_on_from_the_state_of_the_last(model) -> None:
    ids = torch.tensor([PROMPTS[2]])
    with torch.inference_mode():
        whole = model(ids).logits
        first = model(ids[:, :3])
        rest = model(ids[:, 3:], state=first.state).logits
    joined = torch.cat([first.logits, rest], dim=1)
    assert torch.allclose(joined, whole, atol=1e-5)


def test_generate_writes_what_the_engine_writes(model, folder: Path) -> None:
    engine = Engine.from_config(
        EngineConfig(model=folder, max_slots=4, num_threads=1, dtype="float32")
    )
    sampling = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True)
    for prompt, output in zip(PROMPTS, engine.generate(PROMPTS, sampling), strict=True):
        assert generate(model, [prompt]) == [list(output.token_ids)]


@pytest.mark.parametrize("length", [4, 5, 6, 63, 64, 65, 150])
def test_logprobs_are_the_engines(model, folder: Path, length: int) -> None:
    """Of a prompt that the engine takes in parts, and of an answer that it decodes."""
    prompt = [7 * i % 300 + 3 for i in range(length)]
    engine = Engine.from_config(
        EngineConfig(
            model=folder, max_slots=2, max_batched_tokens=64, num_threads=1, dtype="float32"
        )
    )
    sampling = SamplingParams(
        max_tokens=12, temperature=0.0, ignore_eos=True, logprobs=0, prompt_logprobs=0
    )
    [output] = engine.generate([prompt], sampling)
    ids = [*prompt, *output.token_ids]
    with torch.inference_mode():
        expected = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    entries = [*(output.prompt_logprobs or ())[1:], *(output.logprobs or ())]
    assert len(entries) == len(ids) - 1
    for i, entry in enumerate(entries):
        assert entry.chosen.token_id == ids[i + 1]
        assert entry.chosen.logprob == pytest.approx(expected[i, ids[i + 1]].item(), abs=2e-4)


def test_generate_does_not_need_its_state(model) -> None:
    assert generate(model, [PROMPTS[0]], use_cache=False) == generate(model, [PROMPTS[0]])


def test_padding_before_a_prompt_changes_nothing(model) -> None:
    width = max(map(len, PROMPTS))
    padded = [[0] * (width - len(prompt)) + prompt for prompt in PROMPTS]
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in PROMPTS])
    together = generate(model, padded, attention_mask=mask)
    assert together == [generate(model, [prompt])[0] for prompt in PROMPTS]


def test_padding_after_a_prompt_is_refused(model) -> None:
    with pytest.raises(ValueError, match="padding_side='left'"):
        model(torch.tensor([[5, 0]]), attention_mask=torch.tensor([[1, 0]]))


def test_beams_take_their_states_along(model) -> None:
    """With as many beams as it takes, the likeliest continuation of two tokens is found exactly."""
    [found] = generate(model, [PROMPTS[0]], max_new_tokens=2, num_beams=64, length_penalty=0.0)
    vocab = model.config.vocab_size
    pairs = torch.cartesian_prod(torch.arange(vocab), torch.arange(vocab))
    with torch.inference_mode():
        first = model(torch.tensor([PROMPTS[0]])).logits[0, -1].log_softmax(-1)
        prompts = torch.tensor([PROMPTS[0]]).repeat(vocab, 1)
        extended = torch.cat([prompts, torch.arange(vocab)[:, None]], dim=1)
        second = model(extended).logits[:, -1].log_softmax(-1)
    best = (first[:, None] + second).flatten().argmax()
    assert found == pairs[best].tolist()


def test_the_loss_is_that_of_the_next_token(model) -> None:
    ids = torch.tensor([PROMPTS[2]])
    output = model(ids, labels=ids)
    logprobs = output.logits[0].log_softmax(-1)
    expected = -torch.stack([logprobs[i, t] for i, t in enumerate(PROMPTS[2][1:])]).mean()
    assert torch.allclose(output.loss, expected, atol=1e-6)


def test_a_saved_model_is_served_as_it_was(model, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    ids = torch.tensor([PROMPTS[0]])
    with torch.inference_mode():
        assert torch.equal(load_model(tmp_path)(ids), model(ids).logits)


def test_a_folder_that_is_not_ours_says_what_to_do(tmp_path: Path) -> None:
    from dijiang_runtime.models.transformers_model import DiJiangForCausalLM

    with pytest.raises(ModelLoadError, match="cannot be read"):
        DiJiangForCausalLM.from_pretrained(tmp_path)
