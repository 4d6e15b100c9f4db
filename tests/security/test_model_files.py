"""A model folder is data: it runs nothing, and lies in it are errors."""

import copy
import json
import random
import shutil
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from dijiang_runtime.errors import ModelLoadError, UnsupportedModelError
from dijiang_runtime.models.config import ModelConfig
from dijiang_runtime.models.loader import load_model
from dijiang_runtime.models.presets import attention_config
from dijiang_runtime.tokenizer import Tokenizer


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_model, tmp_path / "model")


HARMFUL_FIELDS: tuple[dict[str, object], ...] = (
    {"auto_map": {"AutoModelForCausalLM": "canary.Model"}},
    {"trust_remote_code": True},
    {"_attn_implementation_internal": "canary.attend"},
    {"_name_or_path": "../../etc/passwd"},
    {"quantization_config": {"quant_method": "canary"}},
)

LOAD_ALL = """
import sys
from pathlib import Path
from dijiang_runtime.errors import ModelLoadError
from dijiang_runtime.models.loader import load_model
for folder in sys.argv[1:]:
    try:
        load_model(Path(folder))
    except ModelLoadError as exc:
        print(exc)
"""


@pytest.mark.parametrize("optimised", [(), ("-O",)], ids=["python", "python -O"])
def test_s23_code_beside_a_model_is_never_imported(
    tiny_model: Path, tmp_path: Path, optimised: tuple[str, ...]
) -> None:
    folders = []
    for field in HARMFUL_FIELDS:
        folder = shutil.copytree(tiny_model, tmp_path / next(iter(field)))
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **field}))
        (folder / "canary.py").write_text("raise SystemExit('the canary was imported')")
        folders.append(str(folder))
    result = subprocess.run(
        [sys.executable, *optimised, "-c", LOAD_ALL, *folders],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert result.returncode == 0, result.stderr
    told = result.stdout.splitlines()
    for field, line in zip(HARMFUL_FIELDS, told, strict=True):
        assert f"unknown keys: {next(iter(field))}" in line


def hostile_headers() -> Iterator[tuple[str, bytes]]:
    """Safetensors files whose header lies, beside one that tells the truth."""

    def file(header: object, *, length: int | None = None, data: bytes = b"\0" * 64) -> bytes:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        return struct.pack("<Q", len(text) if length is None else length) + text + data

    def tensor(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, object]:
        return {
            "embed_tokens.weight": {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
        }

    yield "empty", b""
    yield "seven bytes", b"\0" * 7
    yield "header of 2^63", file({}, length=2**63)
    yield "header of 2^64-1", file({}, length=2**64 - 1)
    yield "header of 1 GiB", file({}, length=2**30)
    yield "header one too long", file({}, length=67)
    yield "no json", file(b"\xff" * 16)
    yield "an array", file([1])
    yield "deep", file(b"[" * 100_000)
    yield "shape of 2^40", file(tensor("F32", [2**40], 0, 64))
    yield "shape that overflows", file(tensor("F32", [2**33, 2**33], 0, 64))
    yield "negative shape", file(tensor("F32", [-16], 0, 64))
    yield "offsets beyond", file(tensor("F32", [16], 2**62, 2**62 + 64))
    yield "offsets reversed", file(tensor("F32", [16], 64, 0))
    yield "offsets negative", file(tensor("F32", [16], -64, 0))
    yield "unknown dtype", file(tensor("Q9", [16], 0, 64))
    first = tensor("F32", [16], 0, 64)
    overlap = {**first, "b": first["embed_tokens.weight"]}
    yield "overlap", file(overlap)
    yield "hole", file(tensor("F32", [8], 32, 64))
    yield "pickle", b"\x80\x04\x95\x0b\0\0\0\0\0\0\0"


@pytest.mark.parametrize("data", [pytest.param(data, id=name) for name, data in hostile_headers()])
def test_s30_a_hostile_header_is_an_error_and_allocates_nothing(folder: Path, data: bytes) -> None:
    (folder / "model.safetensors").write_bytes(data)
    tracemalloc.start()
    with pytest.raises(ModelLoadError):
        load_model(folder)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 * 2**20


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_s30_damage_anywhere_is_an_error_or_a_model(folder: Path, name: str) -> None:
    path = folder / name
    whole = path.read_bytes()
    rng = random.Random(0)
    for _ in range(60):
        damaged = bytearray(whole)
        at = rng.randrange(min(len(whole), 4000))
        damaged[at] = rng.randrange(256)
        if rng.random() < 0.3:
            del damaged[at:]
        path.write_bytes(damaged)
        try:
            load_model(folder)
            Tokenizer.load(folder)
        except ModelLoadError:
            pass


TINY: dict[str, Any] = ModelConfig(
    family="llama",
    preset="dijiang",
    vocab_size=40,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_position_embeddings=64,
    attention=attention_config("dijiang", 8),
).to_dict()

WRONG_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(-5, 5), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_s30_any_value_in_a_config_is_an_error_or_a_config(data: st.DataObject) -> None:
    values = copy.deepcopy(TINY)
    part = data.draw(st.sampled_from([values, values["attention"]]))
    part[data.draw(st.sampled_from(sorted(part)))] = data.draw(WRONG_VALUES)
    try:
        config = ModelConfig.from_dict(values)
    except UnsupportedModelError as exc:
        assert "config.json" in str(exc) or "attention" in str(exc)
    else:
        assert config.state.num_bytes > 0


@pytest.mark.parametrize(
    ("key", "value"),
    [("hidden_size", "32"), ("hidden_size", -1), ("hidden_size", True), ("num_layers", 2**62),
     ("norm_eps", float("nan")), ("rope_theta", float("inf")), ("activation", "canary"),
     ("attention", [1]), ("rope_scaling", 5), ("eos_token_ids", 7), ("eos_token_ids", ["a"])],
)  # fmt: skip
def test_s30_a_wrong_value_is_named(key: str, value: object) -> None:
    with pytest.raises(UnsupportedModelError, match=key):
        ModelConfig.from_dict({**TINY, key: value})
