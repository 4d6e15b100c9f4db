"""Folders of packed matrices: the same bits as packing at load, mapped, and refused when wrong."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dijiang_runtime.bench.made_up import write_random_packed_folder
from dijiang_runtime.config import EngineConfig
from dijiang_runtime.engine.engine import Engine
from dijiang_runtime.errors import ModelLoadError
from dijiang_runtime.models.loader import load_config, load_model
from dijiang_runtime.models.packed_folder import load_packed, pack_folder, packed_format
from dijiang_runtime.models.serving import decoder_of, load_for_serving
from dijiang_runtime.ops.cpu.library import NO_TARGET, TARGET_VARIABLE, targets
from dijiang_runtime.ops.cpu.packed import WEIGHT_FORMATS, WeightFormat
from dijiang_runtime.request import SamplingParams

pytestmark = pytest.mark.skipif(not targets(), reason="built without a C++ compiler")
CPU = torch.device("cpu")
SMAPS = Path("/proc/self/smaps")
METADATA = {"format": "pt", "dijiang_packed": "int8", "dijiang_layout": "1"}


@pytest.fixture(scope="module")
def packed(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed")
    pack_folder(tiny_model, out, "int8")
    (out / "tokenizer.json").write_bytes((tiny_model / "tokenizer.json").read_bytes())
    return out


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("weight_format", WEIGHT_FORMATS)
def test_a_packed_folder_holds_the_bits_that_packing_at_load_makes(
    make_tiny_model: Callable[..., Path], tmp_path: Path, weight_format: WeightFormat, tied: bool
) -> None:
    source = make_tiny_model(tie_word_embeddings=tied)
    pack_folder(source, tmp_path, weight_format)

    ours, stored = load_for_serving(tmp_path, CPU, "auto")
    at_load, _ = load_for_serving(source, CPU, weight_format)

    assert stored == packed_format(tmp_path) == weight_format
    expected = decoder_of(at_load).state_dict()
    found = decoder_of(ours).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_answers_are_those_of_the_folder_that_it_was_made_from(
    packed: Path, tiny_model: Path
) -> None:
    prompts, sampling = [[5, 6, 7] * 30, [9]], SamplingParams(max_tokens=20, temperature=0.0)
    answers = []
    for folder, dtype in ((tiny_model, "int8"), (packed, "auto")):
        engine = Engine.from_config(EngineConfig(model=folder, dtype=dtype, num_threads=1))  # type: ignore[arg-type]
        answers.append([output.token_ids for output in engine.generate(prompts, sampling)])
    assert answers[0] == answers[1]


def test_matrices_are_mapped_from_whole_cache_lines(packed: Path) -> None:
    matrix = decoder_of(load_for_serving(packed, CPU, "int8")[0]).layers[0].mlp.up.matrix
    mapped = Path("/proc/self/maps").read_text(encoding="utf-8") if Path("/proc").exists() else ""
    if not mapped:
        pytest.skip("this system does not tell what is mapped")
    place = matrix.panels.data_ptr()
    assert place % 64 == 0
    [line] = [
        line
        for line in mapped.splitlines()
        if int(line.split("-")[0], 16) <= place < int(line.split("-")[1].split()[0], 16)
    ]
    assert line.endswith(str(packed / "model.safetensors"))


def test_loading_reads_neither_matrices_nor_the_embedding_table(
    make_tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    if not SMAPS.exists():
        pytest.skip("this system does not tell what is mapped")
    config = load_config(make_tiny_model())
    write_random_packed_folder(
        dataclasses.replace(config, vocab_size=20_000, intermediate_size=8_192), tmp_path, "int8"
    )
    model, _ = load_for_serving(tmp_path, CPU, "auto")
    size, resident = pages_of(tmp_path / "model.safetensors")
    assert size > 7_000_000
    assert resident < 0.2 * size
    decoder_of(model).embed_tokens.weight.sum()
    assert pages_of(tmp_path / "model.safetensors")[1] > 0.5 * size


def pages_of(file: Path) -> tuple[int, int]:
    """Bytes of a file that this process maps, and those of them that it has read."""
    size = resident = 0
    is_ours = False
    for line in SMAPS.read_text(encoding="utf-8").splitlines():
        key, *rest = line.split()
        if not key.endswith(":"):
            is_ours = line.endswith(str(file))
        elif is_ours and key == "Size:":
            size += 1024 * int(rest[0])
        elif is_ours and key == "Rss:":
            resident += 1024 * int(rest[0])
    return size, resident


def test_large_weights_are_cut_into_files(tiny_model: Path, tmp_path: Path) -> None:
    pack_folder(tiny_model, tmp_path, "int8", shard_bytes=20_000)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    for path in tmp_path.glob("model-*.safetensors"):
        with safe_open(path, framework="pt") as file:
            assert file.metadata() == METADATA
    load_packed(tmp_path)


def test_a_random_folder_can_be_written_that_never_was_in_memory(
    tiny_model: Path, tmp_path: Path
) -> None:
    write_random_packed_folder(load_config(tiny_model), tmp_path, "int8")
    [output] = Engine.from_config(EngineConfig(model=tmp_path)).generate(
        [[5, 6]], SamplingParams(max_tokens=4, ignore_eos=True)
    )
    assert len(output.token_ids) == 4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_another_dtype_than_the_stored_one_is_refused(packed: Path, dtype: str) -> None:
    with pytest.raises(ModelLoadError, match=f"packed as int8, so dtype cannot be {dtype}"):
        load_for_serving(packed, CPU, dtype)  # type: ignore[arg-type]


def test_what_has_no_kernels_refuses_a_packed_folder(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelLoadError, match="packed for the compiled CPU kernels"):
        load_for_serving(packed, torch.device("cuda"), "auto")
    monkeypatch.setenv(TARGET_VARIABLE, NO_TARGET)
    with pytest.raises(ModelLoadError, match="packed for the compiled CPU kernels"):
        load_for_serving(packed, CPU, "auto")


def test_training_and_transformers_refuse_it_with_the_reason(packed: Path) -> None:
    with pytest.raises(ModelLoadError, match="packed as int8, to be served"):
        load_model(packed)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t.pop("layers.1.mlp.up.panels"), "lack 1 tensors, first 'layers.1.mlp.up"),
        (lambda t: t.update(extra=torch.ones(1)), "unknown tensor 'extra'"),
        (
            lambda t: t.update({"lm_head.panels": t["lm_head.panels"][:1].clone()}),
            "lm_head.panels has shape",
        ),
        (
            lambda t: t.update({"lm_head.panels": t["lm_head.panels"].view(torch.uint8)}),
            "lm_head.panels holds torch.uint8, not torch.int8",
        ),
        (
            lambda t: t["lm_head.scale"].fill_(float("nan")),
            r"lm_head.scale holds a non-finite value",
        ),
    ],
)
def test_damaged_tensors_are_named(
    packed: Path, tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], object], reason: str
) -> None:
    tensors = {
        name: tensor.clone() for name, tensor in load_file(packed / "model.safetensors").items()
    }
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors", METADATA)
    (tmp_path / "config.json").write_bytes((packed / "config.json").read_bytes())
    with pytest.raises(ModelLoadError, match=reason):
        load_for_serving(tmp_path, CPU, "auto")


@pytest.mark.parametrize("change", [{"dijiang_layout": "99"}, {"dijiang_packed": "int3"}])
def test_an_unknown_layout_is_refused(packed: Path, tmp_path: Path, change: dict[str, str]) -> None:
    save_file(
        load_file(packed / "model.safetensors"), tmp_path / "model.safetensors", METADATA | change
    )
    (tmp_path / "config.json").write_bytes((packed / "config.json").read_bytes())
    with pytest.raises(ModelLoadError, match="Pack it again"):
        load_for_serving(tmp_path, CPU, "auto")


def test_a_file_that_was_cut_off_is_refused(packed: Path, tmp_path: Path) -> None:
    data = (packed / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(data[:-100])
    (tmp_path / "config.json").write_text(json.dumps(load_config(packed).to_dict()))
    with pytest.raises(ModelLoadError, match="cannot be read as safetensors"):
        load_for_serving(tmp_path, CPU, "auto")
