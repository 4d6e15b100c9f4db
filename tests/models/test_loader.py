"""Reading and writing model folders of our own."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dijiang_runtime.errors import ModelLoadError, UnsupportedModelError
from dijiang_runtime.models.config import AttentionConfig, ModelConfig
from dijiang_runtime.models.decoder import Decoder
from dijiang_runtime.models.loader import load_config, load_model, save_model
from dijiang_runtime.models.presets import attention_config

CONFIG = ModelConfig(
    family="gpt_neox",
    preset="dijiang",
    vocab_size=40,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_position_embeddings=64,
    rotary_dim=4,
    attention=attention_config("dijiang", 8),
    eos_token_ids=(0,),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_model(Decoder(CONFIG), tmp_path)
    return tmp_path


def edit_weights(folder: Path, edit) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


def edit_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_saved_model_loads_as_it_was(tmp_path: Path) -> None:
    model = Decoder(CONFIG)
    save_model(model, tmp_path)
    loaded = load_model(tmp_path)
    ids = torch.arange(30)[None]
    assert loaded.config == CONFIG
    with torch.inference_mode():
        assert torch.equal(loaded(ids), model.eval()(ids))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_on_disk_keeps_decays_maps_and_norms_in_float32(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    save_model(Decoder(CONFIG), tmp_path, dtype=dtype)
    tensors = load_file(tmp_path / "model.safetensors")
    for name, tensor in tensors.items():
        small = any(part in name for part in ("log_decay_rate", "feature_map", "norm"))
        assert tensor.dtype == (torch.float32 if small else dtype), name


def test_bfloat16_weights_give_nearly_the_same_logits_as_float32(folder: Path) -> None:
    ids = torch.arange(30)[None]
    with torch.inference_mode():
        exact, rounded = load_model(folder)(ids), load_model(folder, dtype=torch.bfloat16)(ids)
    assert rounded.dtype == torch.float32
    assert 0 < float((exact - rounded).norm() / exact.norm()) < 0.02


def test_the_papers_weighted_form_is_a_model_too(tmp_path: Path) -> None:
    attention = AttentionConfig(feature_map="weighted_exp", num_features=8, num_groups=8)
    model = Decoder(dataclasses.replace(CONFIG, attention=attention))
    save_model(model, tmp_path)
    names = set(load_file(tmp_path / "model.safetensors"))
    assert "layers.0.attention.feature_map.weight" in names
    model(torch.arange(30)[None]).logsumexp(-1).mean().backward()
    assert float(model.layers[0].attention.feature_map.weight.grad.abs().sum()) > 0


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop("lm_head.weight"), "lack 1 tensors, first 'lm_head.weight'"),
        (lambda t: t.update(extra=torch.ones(1)), "unknown tensor 'extra'"),
        (
            lambda t: t.update({"lm_head.weight": torch.ones(41, 32)}),
            r"lm_head.weight has shape \[41, 32\], but the config asks for \[40, 32\]",
        ),
        (
            lambda t: t["final_norm.weight"].index_fill_(0, torch.tensor(3), float("nan")),
            r"final_norm.weight holds a non-finite value at \[3\]",
        ),
    ],
    ids=["missing", "unknown", "misshapen", "nan"],
)
def test_damaged_weights_are_refused_by_name(folder: Path, edit, message: str) -> None:
    edit_weights(folder, edit)
    with pytest.raises(ModelLoadError, match=message):
        load_model(folder)


def test_a_truncated_file_is_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelLoadError, match="cannot be read as safetensors"):
        load_model(folder)


def test_pickled_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelLoadError, match="never loaded because they can run code"):
        load_model(folder)


def test_a_shard_outside_the_folder_is_not_opened(folder: Path) -> None:
    index = {"weight_map": {"lm_head.weight": "../other/model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelLoadError, match="outside its folder"):
        load_model(folder)


def test_unknown_config_keys_are_refused_by_name(folder: Path) -> None:
    edit_config(folder, auto_map={"AutoModel": "evil.Model"})
    with pytest.raises(UnsupportedModelError, match="unknown keys: auto_map"):
        load_config(folder)


def test_a_config_of_another_architecture_is_refused(folder: Path) -> None:
    edit_config(folder, model_type="mamba")
    with pytest.raises(ModelLoadError, match="'mamba'"):
        load_config(folder)


def test_a_missing_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="There is no model folder"):
        load_model(tmp_path / "nowhere")
