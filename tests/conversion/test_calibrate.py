"""Half-lives and output scales from the parent's own attention."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from dijiang_runtime.conversion.calibrate import Calibration, CalibrationOptions, inverse_silu
from dijiang_runtime.conversion.convert import ConvertOptions, convert
from dijiang_runtime.conversion.data import load_tokenizer, pack_documents
from dijiang_runtime.conversion.dijiang_model import load_dijiang
from dijiang_runtime.conversion.distillation import alignment_loss, attention_records
from dijiang_runtime.conversion.errors import ConversionError
from dijiang_runtime.conversion.vanilla import load_vanilla
from dijiang_runtime.models.loader import load_model


def test_half_lives_are_the_mean_look_back_of_a_group(
    parents: dict[str, Path], stories: Path
) -> None:
    """Against a sum over all pairs, written out. Query heads 2h and 2h + 1 share head h."""
    options = CalibrationOptions(data=(stories,), num_tokens=24, context=24)
    ours = Calibration(parents["llama"], options).half_lives(2)

    ids = pack_documents([stories], load_tokenizer(parents["llama"]), eos_token_id=0)[:24]
    model = AutoModelForCausalLM.from_pretrained(parents["llama"], attn_implementation="eager")
    with torch.no_grad():
        layers = model(torch.tensor(ids).long()[None], output_attentions=True).attentions
    for layer, attention in enumerate(layers):
        for head in range(2):
            means = []
            for query_head in (2 * head, 2 * head + 1):
                pairs = [(n, j) for n in range(24) for j in range(1, n + 1)]
                weight = {(n, j): float(attention[0, query_head, n, j]) for n, j in pairs}
                distance = sum(w * (n - j) for (n, j), w in weight.items())
                means.append(distance / sum(weight.values()))
            assert float(ours[layer, head]) == pytest.approx(sum(means) / 2, rel=1e-4)


@pytest.mark.parametrize("family", ["gpt_neox", "llama", "opt"])
def test_a_calibrated_attention_starts_nearer_to_the_parents(
    parents: dict[str, Path], stories: Path, tmp_path: Path, family: str
) -> None:
    convert(parents[family], tmp_path / "plain")
    convert(parents[family], tmp_path / "calibrated", ConvertOptions(calibrate=(stories,)))
    teacher = load_vanilla(parents[family])
    ids = pack_documents([stories], load_tokenizer(parents[family]), eos_token_id=0)[:200]
    with torch.no_grad(), attention_records(teacher) as (inputs, outputs):
        teacher.logits(torch.tensor(ids).long().view(2, 100))
        errors = [
            float(alignment_loss(load_dijiang(tmp_path / name).attention_outputs(inputs), outputs))
            for name in ("plain", "calibrated")
        ]
    assert errors[1] < 0.9 * errors[0]


def test_no_other_scale_of_a_head_is_closer(
    parents: dict[str, Path], stories: Path, tmp_path: Path
) -> None:
    convert(parents["gpt_neox"], tmp_path / "out", ConvertOptions(calibrate=(stories,)))
    again = Calibration(parents["gpt_neox"], CalibrationOptions(data=(stories,)))
    student = load_dijiang(tmp_path / "out")
    gates = torch.stack([block.gate.bias for block in student.attention_blocks()])
    scale = torch.nn.functional.silu(gates.detach()).view(2, 4, 8)[:, :, 0]
    inside = (scale > 0.26) & (scale < 3.9)
    assert bool(inside.any())
    assert torch.allclose(again.output_scales(student).float()[inside], torch.ones(()), atol=1e-3)


def test_calibration_leaves_the_parents_weights_alone_and_is_told(
    parents: dict[str, Path], stories: Path, tmp_path: Path
) -> None:
    convert(parents["llama"], tmp_path / "plain")
    convert(parents["llama"], tmp_path / "out", ConvertOptions(calibrate=(stories,)))
    plain = load_model(tmp_path / "plain").state_dict()
    for name, tensor in load_model(tmp_path / "out").state_dict().items():
        if not name.endswith(("log_decay_rate", "gate.bias")):
            assert tensor.equal(plain[name]), name
    step = json.loads((tmp_path / "out" / "provenance.json").read_text())[0]
    assert step["calibrated_on"] == [stories.name]
    decay = load_model(tmp_path / "out").layers[1].attention.log_decay_rate
    kept = torch.exp(-decay.exp() * torch.tensor(step["half_lives"][1]))
    assert torch.allclose(kept, torch.tensor(0.5), atol=1e-3)
    assert "the parent's own look-back" in (tmp_path / "out" / "README.md").read_text()


def test_the_official_preset_is_not_calibrated(
    parents: dict[str, Path], stories: Path, tmp_path: Path
) -> None:
    options = ConvertOptions(preset="official", calibrate=(stories,))
    with pytest.raises(ConversionError, match="fixes decays"):
        convert(parents["llama"], tmp_path / "out", options)


def test_inverse_silu_is_one() -> None:
    values = torch.tensor([0.01, 0.25, 1.0, 4.0], dtype=torch.float64)
    assert torch.allclose(torch.nn.functional.silu(inverse_silu(values)), values, rtol=1e-12)
