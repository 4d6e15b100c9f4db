"""Models cut into shards, and conversions that never hold a whole model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from dijiang_runtime.conversion.convert import ConvertOptions, convert
from dijiang_runtime.errors import ModelLoadError
from dijiang_runtime.models.loader import load_model
from dijiang_runtime.models.shards import ShardWriter, TensorSpec

# Peak resident memory of a conversion beyond that of a tiny one, in bytes.
MEASURE = """
import sys
from pathlib import Path
from dijiang_runtime.conversion.convert import ConvertOptions, convert

def peak():
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])

tiny, large, out = map(Path, sys.argv[1:])
convert(tiny, out / "tiny")
before = peak()
convert(large, out / "large", ConvertOptions(shard_bytes=50_000_000))
print(peak() - before)
"""


def test_shards_hold_what_one_file_holds(parents: dict[str, Path], tmp_path: Path) -> None:
    convert(parents["gpt_neox"], tmp_path / "one")
    convert(parents["gpt_neox"], tmp_path / "many", ConvertOptions(shard_bytes=30_000))

    whole = load_file(tmp_path / "one" / "model.safetensors")
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    files = sorted((tmp_path / "many").glob("*.safetensors"))
    assert len(files) > 2
    assert files[0].name == f"model-00001-of-{len(files):05}.safetensors"
    assert index["metadata"]["total_size"] == sum(4 * t.numel() for t in whole.values())
    for file in files:
        with safe_open(file, framework="pt") as shard:
            for name in shard.keys():
                assert index["weight_map"][name] == file.name
                assert shard.get_tensor(name).equal(whole.pop(name))
    assert whole == {}
    ids = torch.arange(20)[None]
    one, many = load_model(tmp_path / "one"), load_model(tmp_path / "many")
    assert torch.equal(one(ids), many(ids))


def test_a_missing_shard_is_named(parents: dict[str, Path], tmp_path: Path) -> None:
    convert(parents["gpt_neox"], tmp_path / "out", ConvertOptions(shard_bytes=30_000))
    lost = sorted((tmp_path / "out").glob("model-*"))[1]
    lost.unlink()
    with pytest.raises(ModelLoadError, match=lost.name):
        load_model(tmp_path / "out")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_the_writer_writes_what_the_library_reads(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {"odd": torch.randn(3), "bias": torch.randn(5), "matrix": torch.randn(7, 4)}
    specs = {name: TensorSpec(tuple(tensor.shape), dtype) for name, tensor in tensors.items()}
    specs["odd"] = TensorSpec((3,), torch.bfloat16)
    writer = ShardWriter(tmp_path, specs)
    assert writer.missing == set(tensors)
    for name, tensor in reversed(tensors.items()):
        writer.write(name, tensor)
    read = load_file(tmp_path / "model.safetensors")
    for name, tensor in tensors.items():
        assert read[name].equal(tensor.to(specs[name].dtype)), name
    assert writer.missing == frozenset()


def test_a_large_parent_is_never_in_memory_as_a_whole(
    parents: dict[str, Path], tokenizer_folder: Path, tmp_path: Path
) -> None:
    """400 MB on disk, in shards of 100 MB; the largest tensor takes 25 MB."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    sizes = {"hidden_size": 1024, "intermediate_size": 6144, "num_attention_heads": 8}
    config = GPTNeoXConfig(vocab_size=300, num_hidden_layers=6, **sizes, dtype=torch.float32)
    with torch.device("meta"):
        model = GPTNeoXForCausalLM(config)
    large = tmp_path / "large"
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, 0.01)
    model.save_pretrained(large, max_shard_size="100MB")
    (large / "tokenizer.json").write_bytes((tokenizer_folder / "tokenizer.json").read_bytes())
    size = sum(file.stat().st_size for file in large.glob("*.safetensors"))
    assert size > 390e6

    command = [
        sys.executable,
        "-c",
        MEASURE,
        str(parents["gpt_neox"]),
        str(large),
        str(tmp_path / "out"),
    ]
    grown = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert len(list((tmp_path / "out" / "large").glob("*.safetensors"))) > 1
    assert grown < size / 4
