import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dijiang_runtime.conversion.convert import ConvertOptions, convert
from dijiang_runtime.conversion.errors import ConversionError
from dijiang_runtime.conversion.trainable import load_model_folder
from dijiang_runtime.conversion.vanilla import load_vanilla
from dijiang_runtime.errors import DiJiangError, ModelLoadError, UnsupportedModelError
from dijiang_runtime.models.loader import load_config, load_model

FAMILIES = ["gpt_neox", "llama", "opt"]


def copied_pairs(family: str, parent: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What must be found in layer 1 of the converted model, by hand for each family."""
    if family == "gpt_neox":
        fused = parent["gpt_neox.layers.1.attention.query_key_value.weight"]
        # Four heads of size 8; q, k and v rows of a head follow each other.
        q_rows = torch.cat([fused[24 * head : 24 * head + 8] for head in range(4)])
        v_rows = torch.cat([fused[24 * head + 16 : 24 * head + 24] for head in range(4)])
        return {
            "layers.1.attention.q_proj.weight": q_rows,
            "layers.1.attention.v_proj.weight": v_rows,
            "layers.1.mlp.up.bias": parent["gpt_neox.layers.1.mlp.dense_h_to_4h.bias"],
            "lm_head.weight": parent["embed_out.weight"],
        }
    if family == "llama":
        return {
            "layers.1.attention.k_proj.weight": parent["model.layers.1.self_attn.k_proj.weight"],
            "layers.1.mlp.gate.weight": parent["model.layers.1.mlp.gate_proj.weight"],
            "final_norm.weight": parent["model.norm.weight"],
            "embed_tokens.weight": parent["model.embed_tokens.weight"],
        }
    prefix = "model.decoder"
    return {
        "embed_positions.weight": parent[f"{prefix}.embed_positions.weight"],
        "layers.1.attention.o_proj.bias": parent[f"{prefix}.layers.1.self_attn.out_proj.bias"],
        "layers.1.mlp.down.weight": parent[f"{prefix}.layers.1.fc2.weight"],
        "layers.1.mlp_norm.bias": parent[f"{prefix}.layers.1.final_layer_norm.bias"],
    }


@pytest.mark.parametrize("preset", ["dijiang", "dijiang+window", "official"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_parents_weights_are_kept_bit_for_bit(
    parents: dict[str, Path], tmp_path: Path, family: str, preset: str
) -> None:
    report = convert(parents[family], tmp_path / "out", ConvertOptions(preset=preset))

    converted = load_file(tmp_path / "out" / "model.safetensors")
    parent = load_file(parents[family] / "model.safetensors")
    for name, tensor in copied_pairs(family, parent).items():
        assert converted[name].equal(tensor), name
    # A tied head may be in the parent's file under either name, but never counts twice.
    assert report.num_copied == sum(tensor.numel() for tensor in parent.values())
    assert report.unused == ()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_window_as_long_as_the_context_is_the_parent(
    parents: dict[str, Path], tmp_path: Path, family: str
) -> None:
    """With a far token more it is not: there the map, not yet trained, has a say."""
    out = tmp_path / "out"
    convert(parents[family], out, ConvertOptions(preset="dijiang+window"))
    parent, child = load_vanilla(parents[family]), load_model_folder(out)
    token_ids = torch.randint(
        0, parent.vocab_size, (2, 64 + 5), generator=torch.Generator().manual_seed(0)
    )
    with torch.inference_mode():
        expected, ours = parent.logits(token_ids), child.logits(token_ids)
    scale = float(expected.std())
    # The first 4 are pinned, so that the first far token is position 4, of the query at 68.
    assert float((ours - expected)[:, :68].abs().max()) < 1e-4 * scale
    assert float((ours - expected)[:, 68].abs().max()) > 1e-3 * scale


@pytest.mark.parametrize("family", FAMILIES)
def test_the_report_names_every_tensor_once(
    parents: dict[str, Path], tmp_path: Path, family: str
) -> None:
    report = convert(parents[family], tmp_path / "out")
    converted = load_file(tmp_path / "out" / "model.safetensors")
    assert sum(group.count for group in report.groups) == len(converted)
    assert report.num_copied + report.num_new == sum(t.numel() for t in converted.values())
    new = {group.name for group in report.groups if not group.is_copied}
    assert new == {
        f"layers.*.attention.{name}"
        for name in ("feature_map.projection", "log_decay_rate", "gate.weight", "gate.bias")
    }


def test_a_new_gate_and_the_decays_start_where_documented(
    parents: dict[str, Path], tmp_path: Path
) -> None:
    options = ConvertOptions(min_half_life=2, max_half_life=128)
    convert(parents["gpt_neox"], tmp_path / "out", options)
    attention = load_model(tmp_path / "out").layers[0].attention

    gate = torch.nn.functional.silu(attention.gate(torch.randn(5, 32)))
    assert gate.allclose(torch.ones_like(gate))
    decay = torch.exp(-attention.log_decay_rate.exp())
    assert decay.pow(torch.tensor([2.0, 8.0, 32.0, 128.0])).allclose(torch.tensor(0.5))


def test_the_same_seed_gives_the_same_file(parents: dict[str, Path], tmp_path: Path) -> None:
    weights = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        convert(parents["llama"], tmp_path / name, ConvertOptions(preset="official", seed=seed))
        weights.append(load_file(tmp_path / name / "model.safetensors"))
    first, again, other = weights
    assert all(first[name].equal(again[name]) for name in first)
    name = "layers.0.attention.feature_map.projection"
    assert not first[name].equal(other[name])


def test_the_folder_is_complete(parents: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(parents["gpt_neox"], out, ConvertOptions(dtype=torch.float16))
    names = {path.name for path in out.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= names
    assert {"generation_config.json", "README.md", "provenance.json"} <= names
    assert load_config(out).eos_token_ids == (0,)
    tensors = load_file(out / "model.safetensors")
    assert tensors["lm_head.weight"].dtype == torch.float16
    assert tensors["layers.0.attention.log_decay_rate"].dtype == torch.float32
    card = (out / "README.md").read_text()
    assert "convert" in card and str(tmp_path) not in card


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def rename_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def break_weights(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(tensors, folder / "model.safetensors")


REFUSALS: dict[str, tuple[Callable[[Path], None], type[DiJiangError], str]] = {
    "unknown architecture": (
        lambda folder: change_config(folder, model_type="bert"),
        UnsupportedModelError,
        "'bert'",
    ),
    "pickled weights only": (rename_weights, ModelLoadError, "never loaded"),
    "rotary scaling": (
        lambda folder: change_config(folder, rope_parameters={"rope_type": "yarn", "factor": 2.0}),
        UnsupportedModelError,
        "'yarn'",
    ),
    "quantized": (
        lambda folder: change_config(folder, quantization_config={"bits": 4}),
        ConversionError,
        "quantized",
    ),
    "shape": (
        lambda folder: change_config(folder, intermediate_size=40),
        ConversionError,
        r"\[48, 32\].*\[40, 32\]",
    ),
    "NaN": (break_weights, ConversionError, r"non-finite value at \[3, 4\]"),
    "no tokenizer": (
        lambda folder: (folder / "tokenizer.json").unlink(),
        ConversionError,
        r"no tokenizer\.json",
    ),
    "already converted": (
        lambda folder: change_config(folder, model_type="dijiang"),
        ConversionError,
        "already",
    ),
    "no config": (
        lambda folder: (folder / "config.json").unlink(),
        ConversionError,
        r"no readable config\.json",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_converted_is_refused_with_the_reason(
    parents: dict[str, Path], tmp_path: Path, case: str
) -> None:
    spoil, error, message = REFUSALS[case]
    parent = tmp_path / "parent"
    shutil.copytree(parents["llama"], parent)
    spoil(parent)
    with pytest.raises(error, match=message):
        convert(parent, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten_unasked(parents: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("keep me")
    with pytest.raises(ConversionError, match="not empty"):
        convert(parents["llama"], tmp_path)
    assert (tmp_path / "precious.txt").read_text() == "keep me"
    with pytest.raises(ConversionError, match="parent's own"):
        convert(parents["llama"], parents["llama"], ConvertOptions(overwrite=True))


def test_overwriting_replaces_a_model_and_nothing_else(
    parents: dict[str, Path], tmp_path: Path
) -> None:
    out, letters = tmp_path / "model", tmp_path / "letters"
    convert(parents["llama"], out)
    (out / "leftover.txt").write_text("of an earlier model")
    with pytest.raises(ConversionError, match="not empty"):
        convert(parents["llama"], out)
    convert(parents["llama"], out, ConvertOptions(overwrite=True))
    assert not (out / "leftover.txt").exists()

    letters.mkdir()
    (letters / "to-a-friend.txt").write_text("dear")
    with pytest.raises(ConversionError, match="not a model folder"):
        convert(parents["llama"], letters, ConvertOptions(overwrite=True))
    assert (letters / "to-a-friend.txt").read_text() == "dear"
