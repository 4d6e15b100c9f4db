"""Loading what the authors' training code saves."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from dijiang_runtime.errors import ModelLoadError
from dijiang_runtime.models.decoder import Decoder
from dijiang_runtime.models.loader import load_config, load_model

HEADS, DIM, LAYERS, POSITIONS, VOCAB = 12, 16, 2, 128, 61
HIDDEN = HEADS * DIM

CONFIG = {
    "architectures": ["GPTNeoXForCausalLM"],
    "auto_map": {"AutoModelForCausalLM": "modeling_gpt_neox.GPTNeoXForCausalLM"},
    "model_type": "gpt_neox",
    "hidden_act": "gelu",
    "hidden_size": HIDDEN,
    "intermediate_size": 100,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": POSITIONS,
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "rotary_emb_base": 10000,
    "rotary_pct": 0.25,
    "tie_word_embeddings": False,
    "use_parallel_residual": True,
    "vocab_size": VOCAB + 26,  # Their script shrinks the embeddings and leaves this as it was.
    "eos_token_id": 0,
}


def fixed_tables(positions: int = POSITIONS) -> tuple[Tensor, Tensor]:
    """D1 and D2 as their constructor makes them, [1, H, P, 1]."""
    rates = torch.exp(torch.linspace(math.log(1 / 32), math.log(1 / 512), HEADS))
    d1 = (1 - rates).view(HEADS, 1, 1) ** torch.arange(positions).unsqueeze(1)
    return d1.float().unsqueeze(0), (1 / d1).float().unsqueeze(0)


def trained_tables() -> tuple[Tensor, Tensor]:
    d1, d2 = fixed_tables()
    noise = 1 + 0.05 * torch.randn(2, *d1.shape)
    signs = torch.where(torch.rand(2, *d1.shape) < 0.02, -1.0, 1.0)
    return d1 * noise[0] * signs[0], d2 * noise[1] * signs[1]


def checkpoint(d1: Tensor, d2: Tensor) -> dict[str, Tensor]:
    torch.manual_seed(0)
    inner = CONFIG["intermediate_size"]
    shapes = {"gpt_neox.embed_in": (VOCAB, HIDDEN), "embed_out": (VOCAB, HIDDEN)}
    tensors = {f"{name}.weight": torch.randn(shape) for name, shape in shapes.items()}
    norms = ["gpt_neox.final_layer_norm"]
    for i in range(LAYERS):
        layer = f"gpt_neox.layers.{i}"
        norms += [f"{layer}.input_layernorm", f"{layer}.post_attention_layernorm"]
        norms += [f"{layer}.attention.group_norm"]
        for name, rows, columns in (
            ("attention.query_key_value", 3 * HIDDEN, HIDDEN),
            ("attention.dense", HIDDEN, HIDDEN),
            ("mlp.dense_h_to_4h", inner, HIDDEN),
            ("mlp.dense_4h_to_h", HIDDEN, inner),
        ):
            tensors[f"{layer}.{name}.weight"] = torch.randn(rows, columns) / columns**0.5
            tensors[f"{layer}.{name}.bias"] = 0.1 * torch.randn(rows)
        tensors[f"{layer}.attention.proj_matrix"] = torch.randn(DIM, DIM) / DIM**0.5
        tensors[f"{layer}.attention.W_G"] = torch.randn(HIDDEN, HIDDEN) / HIDDEN**0.5
        tensors[f"{layer}.attention.D1"] = d1.clone()
        tensors[f"{layer}.attention.D2"] = d2.clone()
        # Buffers of old transformers versions.
        tensors[f"{layer}.attention.bias"] = torch.ones(1, 1, 8, 8, dtype=torch.bool)
        tensors[f"{layer}.attention.masked_bias"] = torch.tensor(-1e9)
        tensors[f"{layer}.attention.rotary_emb.inv_freq"] = torch.ones(2)
    for name in norms:
        tensors[f"{name}.weight"] = 1 + 0.2 * torch.randn(HIDDEN)
        tensors[f"{name}.bias"] = 0.2 * torch.randn(HIDDEN)
    return tensors


def write(folder: Path, tensors: dict[str, Tensor]) -> Path:
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def authors_forward(tensors: dict[str, Tensor], ids: Tensor) -> Tensor:
    """Their forward pass in float64, statement by statement from the published file: [T, V]."""
    w = {name: t.double() for name, t in tensors.items()}
    n, rotary = torch.arange(len(ids)), DIM // 4
    frequency = 10000.0 ** -(torch.arange(0, rotary, 2).double() / rotary)
    angle = torch.cat([n[:, None] * frequency] * 2, dim=-1)

    def rope(x: Tensor) -> Tensor:
        rot, rest = x[..., :rotary], x[..., rotary:]
        half = torch.cat([-rot[..., rotary // 2 :], rot[..., : rotary // 2]], dim=-1)
        return torch.cat([rot * angle.cos() + half * angle.sin(), rest], dim=-1)

    def norm(x: Tensor, name: str) -> Tensor:
        weight, bias = w[f"{name}.weight"], w[f"{name}.bias"]
        return torch.nn.functional.layer_norm(x, (HIDDEN,), weight, bias, 1e-5)

    def dense(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    x = w["gpt_neox.embed_in.weight"][ids]
    for i in range(LAYERS):
        layer = f"gpt_neox.layers.{i}"
        normed = norm(x, f"{layer}.input_layernorm")
        qkv = dense(normed, f"{layer}.attention.query_key_value").view(-1, HEADS, 3 * DIM)
        q, k, v = qkv.transpose(0, 1).split(DIM, dim=-1)
        projection = w[f"{layer}.attention.proj_matrix"]
        q = (rope(q) @ projection).softmax(-1) * w[f"{layer}.attention.D1"][0, :, : len(ids)]
        k = (rope(k) @ projection).softmax(-1) * w[f"{layer}.attention.D2"][0, :, : len(ids)]
        y = ((q @ k.transpose(1, 2)).tril() @ v).transpose(0, 1).reshape(-1, HIDDEN)
        group_norm = f"{layer}.attention.group_norm"
        y = torch.nn.functional.group_norm(
            y, DIM, w[f"{group_norm}.weight"], w[f"{group_norm}.bias"], 1e-5
        )
        gate = torch.nn.functional.silu(normed @ w[f"{layer}.attention.W_G"])
        attended = dense(gate * y, f"{layer}.attention.dense")
        inner = dense(norm(x, f"{layer}.post_attention_layernorm"), f"{layer}.mlp.dense_h_to_4h")
        mlp = dense(torch.nn.functional.gelu(inner), f"{layer}.mlp.dense_4h_to_h")
        x = x + mlp + attended
    return norm(x, "gpt_neox.final_layer_norm") @ w["embed_out.weight"].T


def logits(model: Decoder, ids: Tensor) -> Tensor:
    with torch.inference_mode():
        return model(ids[None])[0]


@pytest.mark.parametrize("tables", ["fixed", "trained"])
def test_logits_are_those_of_the_authors_code(tmp_path: Path, tables: str) -> None:
    d1, d2 = fixed_tables() if tables == "fixed" else trained_tables()
    tensors = checkpoint(d1, d2)
    model = load_model(write(tmp_path, tensors))
    ids = torch.randint(0, VOCAB, (POSITIONS,))
    truth = authors_forward(tensors, ids)
    assert float(truth.std()) > 1.0
    assert float((logits(model, ids) - truth).abs().max()) < 5e-6 * float(truth.abs().max())


def test_fixed_decay_needs_no_table_and_sets_no_limit(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, checkpoint(*fixed_tables())))
    assert not config.attention.decay_tables
    assert config.position_limit is None


def test_trained_tables_refuse_positions_beyond_them(tmp_path: Path) -> None:
    model = load_model(write(tmp_path, checkpoint(*trained_tables())))
    assert model.config.position_limit == POSITIONS
    with pytest.raises(ValueError, match="128 positions; 129"):
        model(torch.zeros(1, POSITIONS + 1, dtype=torch.int64))


def test_finite_at_lengths_where_the_official_code_gives_nan(tmp_path: Path) -> None:
    """Their D2 is infinite in float32 from index 2795 on, and then every row is NaN."""
    _, d2 = fixed_tables(2796)
    assert bool(d2[0, 0, 2795].isinf())
    model = load_model(write(tmp_path, checkpoint(*fixed_tables(1024))))
    ids = torch.randint(0, VOCAB, (16_384,))
    assert bool(logits(model, ids).isfinite().all())


def test_vocabulary_is_counted_in_the_weights(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, checkpoint(*fixed_tables()))).vocab_size == VOCAB


def test_an_overflowed_fp16_file_is_refused_with_the_place_and_the_remedy(tmp_path: Path) -> None:
    d1, d2 = fixed_tables(400)
    half = {name: t.half() for name, t in checkpoint(d1, d2).items()}
    with pytest.raises(ModelLoadError, match=r"D2 .* head 0, position 350: .*overflowed float16"):
        load_model(write(tmp_path, half))


def test_a_vanilla_model_is_refused_with_the_command_to_convert_it(tmp_path: Path) -> None:
    tensors = checkpoint(*fixed_tables())
    vanilla = {n: t for n, t in tensors.items() if "proj_matrix" not in n}
    with pytest.raises(ModelLoadError, match="dijiang convert"):
        load_config(write(tmp_path, vanilla))


def test_the_config_survives_its_json(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, checkpoint(*trained_tables())))
    again = type(config).from_dict(json.loads(json.dumps(config.to_dict())))
    assert dataclasses.asdict(again) == dataclasses.asdict(config)
