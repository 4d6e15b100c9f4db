"""Models with random weights are made packed, and are otherwise what they were."""

import dataclasses
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from dijiang_runtime.bench import facts, random_models
from dijiang_runtime.bench.engine import Bench, BenchOptions
from dijiang_runtime.bench.facts import describe_model, shape_config
from dijiang_runtime.bench.random_models import random_packed_model, random_serving_model
from dijiang_runtime.errors import ModelLoadError
from dijiang_runtime.models.compiled import CompiledDecoder
from dijiang_runtime.models.config import ModelConfig
from dijiang_runtime.models.decoder import Decoder
from dijiang_runtime.models.loader import load_config, random_model
from dijiang_runtime.models.packed import PackedLinear
from dijiang_runtime.models.serving import ServingModel, decoder_of, serve_in
from dijiang_runtime.ops.cpu.library import NO_TARGET, TARGET_VARIABLE, targets
from dijiang_runtime.ops.cpu.packed import WEIGHT_FORMATS, WeightFormat, unpack
from server import cli
from tests.bench.alone import peak_alone

needs_kernels = pytest.mark.skipif(not targets(), reason="built without a C++ compiler")
CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def config(request: pytest.FixtureRequest, tiny_model: Path) -> ModelConfig:
    return dataclasses.replace(load_config(tiny_model), tie_word_embeddings=request.param)


@needs_kernels
@pytest.mark.parametrize("weight_format", WEIGHT_FORMATS)
def test_it_is_what_packing_a_random_model_makes(
    config: ModelConfig, weight_format: WeightFormat
) -> None:
    ours = random_serving_model(config, CPU, weight_format)
    packed, _ = serve_in(random_model(config), CPU, weight_format)

    assert type(ours) is type(packed) is CompiledDecoder
    assert describe_model(decoder_of(ours)) == describe_model(decoder_of(packed))
    found, expected = (decoder_of(model).state_dict() for model in (ours, packed))
    assert {n: (t.shape, t.dtype) for n, t in found.items()} == {
        n: (t.shape, t.dtype) for n, t in expected.items()
    }
    # What is not drawn at random is the same.
    for name in ("final_norm.weight", "layers.0.attention.feature_map.projection"):
        assert torch.equal(found[name], expected[name])


@needs_kernels
@pytest.mark.parametrize("weight_format", WEIGHT_FORMATS)
def test_its_weights_are_random_and_its_steps_finite(
    config: ModelConfig, weight_format: WeightFormat
) -> None:
    model = random_serving_model(config, CPU, weight_format)
    matrices = [m for m in decoder_of(model).modules() if isinstance(m, PackedLinear)]
    assert len(matrices) == 2 * 7 + 1
    for matrix in matrices:
        assert float(unpack(matrix.matrix).std()) == pytest.approx(0.02, rel=0.1)
    assert float(decoder_of(model).embed_tokens.weight.std()) == pytest.approx(0.02, rel=0.1)

    logits = model.logits(torch.randn(3, config.hidden_size))
    assert logits.shape == (3, config.vocab_size) and bool(logits.isfinite().all())
    # Steps that are not finite raise.
    bench = Bench(model, BenchOptions(batches=(2,)), lambda text: None)
    assert bench.prefill_seconds(70) > 0
    assert bench.decode_seconds(batch=2, position=9, steps=4) > 0


@needs_kernels
def test_a_tied_vocabulary_projection_is_the_embedding(config: ModelConfig) -> None:
    model = random_packed_model(config, "float32")
    head = unpack(model.lm_head.matrix)
    assert torch.equal(head, model.embed_tokens.weight) is config.tie_word_embeddings


def make_many_layers() -> Decoder:
    config = dataclasses.replace(shape_config("pythia-70m"), vocab_size=512, num_layers=24)
    return random_packed_model(config, "int8")


@needs_kernels
def test_no_two_matrices_are_ever_in_float32_at_once() -> None:
    packed_bytes = sum(tensor.nbytes for tensor in make_many_layers().state_dict().values())
    # In float32 it would take four times as much.
    assert packed_bytes > 70 * 2**20
    assert peak_alone(make_many_layers) < packed_bytes + 40 * 2**20


@needs_kernels
@pytest.mark.parametrize("preset", ["dijiang", "dijiang+window", "official"])
@pytest.mark.parametrize("options", [[], ["--ratios", "--point=1@8"]], ids=["plain", "ratios"])
def test_the_command_makes_no_model_in_float32(
    options: list[str], preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Made(Exception):
        """A model of this preset was made."""

    def refuse(*args: object, **kwargs: object) -> Decoder:
        raise AssertionError("a model in float32")

    def run(bench: Bench, model: ServingModel, *args: object, **kwargs: object) -> None:
        raise Made(model.config.preset)

    monkeypatch.setitem(facts.SHAPES, "pythia-6.9b", (64, 2, 4, 128))
    monkeypatch.setattr(random_models, "random_model", refuse)
    monkeypatch.setattr(random_models, "serve_in", refuse)
    monkeypatch.setattr(Bench, "__init__", run)
    command = ["bench", "--shape=pythia-6.9b", "--threads=1", f"--preset={preset}", *options]
    end = CliRunner().invoke(cli.app, command).exception
    assert isinstance(end, Made)
    assert end.args == (preset,)


def test_without_the_kernels_nothing_is_packed(
    config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TARGET_VARIABLE, NO_TARGET)
    assert isinstance(random_serving_model(config, CPU, "auto"), Decoder)
    with pytest.raises(ModelLoadError, match="dtype int8 needs the compiled CPU kernels"):
        random_serving_model(config, CPU, "int8")
