"""Every family of parents, small and random: converted, evaluated, and computed by the engine."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from dijiang_runtime.config import EngineConfig
from dijiang_runtime.conversion.convert import ConvertOptions, convert
from dijiang_runtime.conversion.evaluate import EvaluateOptions, evaluate
from dijiang_runtime.engine.engine import Engine
from dijiang_runtime.models.config import Preset
from dijiang_runtime.request import SamplingParams
from tests.conversion.conftest import VOCAB_SIZE
from tests.models.conftest import PARENTS

FAMILIES = {
    "pythia": PARENTS["neox-8x8"],
    "llama-3": PARENTS["llama3-rope"],
    "tinyllama": PARENTS["llama-grouped-queries"],
    "mistral": PARENTS["mistral"],
    "qwen2": PARENTS["qwen2-biases"],
    "qwen3": PARENTS["qwen3-normalised-queries-and-keys"],
    "opt-350m": PARENTS["opt-350m-post-norm-projections"],
}
PROMPT = [5, 9, 30, 7, 81, 22, 60, 3, 3, 17] * 8


def save_parent(build: Callable[[], PreTrainedModel], tokenizer: Path, folder: Path) -> None:
    """The parent with random weights and a tokenizer whose vocabulary is its own."""
    torch.manual_seed(3)
    model = build()
    model.resize_token_embeddings(VOCAB_SIZE)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.5 if parameter.dim() == 1 else parameter.shape[-1] ** -0.5
            parameter.copy_(scale * torch.randn_like(parameter))
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1.0)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tokenizer / name, folder / name)


@pytest.mark.parametrize("preset", ["dijiang", "official"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_converted_parent_loads_evaluates_and_serves_alike(
    family: str, preset: Preset, tokenizer_folder: Path, stories: Path, tmp_path: Path
) -> None:
    parent, child = tmp_path / "parent", tmp_path / "child"
    save_parent(FAMILIES[family], tokenizer_folder, parent)
    convert(parent, child, ConvertOptions(preset=preset))

    loss = evaluate(child, [stories], EvaluateOptions(context=64, max_tokens=256)).loss
    assert 1 < loss < 50

    config = EngineConfig(
        model=child, max_slots=2, num_threads=1, max_logprobs=VOCAB_SIZE, dtype="float32"
    )
    sampling = SamplingParams(
        max_tokens=3, temperature=0.0, ignore_eos=True, logprobs=VOCAB_SIZE, prompt_logprobs=0
    )
    [output] = Engine.from_config(config).generate([PROMPT], sampling)
    ids = torch.tensor([PROMPT + list(output.token_ids)])
    with torch.inference_mode():
        logits = AutoModelForCausalLM.from_pretrained(child)(ids).logits[0]
    expected = logits.double().log_softmax(-1)
    tolerance = 2e-5 * float(logits.abs().max())

    assert output.prompt_logprobs is not None and output.logprobs is not None
    for position, entry in enumerate(output.prompt_logprobs[1:]):
        assert entry is not None
        assert entry.chosen.logprob == pytest.approx(
            float(expected[position, PROMPT[position + 1]]), abs=tolerance
        )
    for step, entry in enumerate(output.logprobs):
        row = expected[len(PROMPT) - 1 + step]
        assert len(entry.top) == VOCAB_SIZE
        for token in entry.top:
            assert token.logprob == pytest.approx(float(row[token.token_id]), abs=tolerance)
