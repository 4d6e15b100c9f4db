"""The authors' trained tables D1 and D2: the same function at first, the same gradients, and why
they are not trained by default."""

from pathlib import Path

import pytest
import torch
from msgspec.structs import replace
from torch import Tensor
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from dijiang_runtime.conversion.convert import ConvertOptions, convert
from dijiang_runtime.conversion.dijiang_model import DiJiangModel, load_dijiang
from dijiang_runtime.conversion.errors import TrainingError
from dijiang_runtime.conversion.evaluate import EvaluateOptions, evaluate
from dijiang_runtime.conversion.options import TrainOptions
from dijiang_runtime.conversion.tables import with_decay_tables
from dijiang_runtime.conversion.train import train
from dijiang_runtime.models.loader import load_model
from dijiang_runtime.models.recurrence import FreshSequences

IDS = torch.randint(0, 300, (2, 100), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def official(parents: dict[str, Path], tmp_path: Path) -> Path:
    convert(parents["llama"], tmp_path / "official", ConvertOptions(preset="official"))
    return tmp_path / "official"


@pytest.fixture
def options(official: Path, stories: Path, tmp_path: Path) -> TrainOptions:
    return TrainOptions(
        model=official,
        data=(str(stories),),
        out=tmp_path / "out",
        tokens=6 * 128,
        context=32,
        batch_size=4,
        decay_tables=True,
    )


def tables_of(model: DiJiangModel) -> dict[str, Tensor]:
    state = model.decoder.state_dict()
    return {name: state[name] for name in state if name.endswith((".D1", ".D2"))}


def test_untrained_tables_compute_what_fixed_decays_do(official: Path) -> None:
    fixed = load_dijiang(official)
    tables = with_decay_tables(fixed)
    with torch.no_grad():
        torch.testing.assert_close(tables.logits(IDS), fixed.logits(IDS), atol=2e-4, rtol=1e-4)


def test_gradients_of_the_tables_are_those_of_the_authors_parallel_form(official: Path) -> None:
    """Against D1[n] (φ(q_n)·φ(k_j)) D2[j] as they compute it: all scores at once, in float64."""
    model = with_decay_tables(load_dijiang(official))
    attention = model.attention_blocks()[1].double()
    generator = torch.Generator().manual_seed(1)
    length, shape = 90, (90, 4, 8)
    phi_q = torch.randn(shape, generator=generator, dtype=torch.float64).softmax(-1)
    phi_k = torch.randn(length, 2, 8, generator=generator, dtype=torch.float64).softmax(-1)
    v = torch.randn(length, 2, 8, generator=generator, dtype=torch.float64)
    weight = torch.randn(shape, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        for table in (attention.D1, attention.D2):
            table *= 1 + 0.1 * torch.randn(table.shape, generator=generator)
            table[:, ::17] *= -1
    d1, d2 = (t.detach().clone().requires_grad_() for t in (attention.D1, attention.D2))
    q_heads = (phi_q[:, h] * d1[h // 2, :length, None] for h in range(4))
    k_heads = [phi_k[:, h] * d2[h, :length, None] for h in range(2)]
    rows = [(q @ k_heads[h // 2].T).tril() @ v[:, h // 2] for h, q in enumerate(q_heads)]
    (torch.stack(rows, dim=1) * weight).sum().backward()

    attention.D1.requires_grad_()
    attention.D2.requires_grad_()
    log_decay, q, k = attention._decay(phi_q, phi_k, torch.arange(length))
    o = FreshSequences(1, length).attend(0, q, k, v, log_decay)
    (o * weight).sum().backward()
    for ours, theirs in ((attention.D1.grad, d1.grad), (attention.D2.grad, d2.grad)):
        assert float(theirs.abs().max()) > 1e-3
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_trained_tables_are_saved_evaluated_and_loaded(
    options: TrainOptions, stories: Path
) -> None:
    before = tables_of(with_decay_tables(load_dijiang(options.model)))
    trained = train(options)
    after = tables_of(load_dijiang(options.out))
    assert before.keys() == after.keys()
    assert not any(before[name].equal(after[name]) for name in before)
    model = load_model(options.out)
    assert model.config.position_limit == 128
    with torch.no_grad():
        assert model(IDS).equal(trained.logits(IDS))
    assert evaluate(options.out, [stories], EvaluateOptions(context=64)).loss < 20


def test_at_the_published_length_the_gradient_overflows_and_training_stops(
    options: TrainOptions, tokenizer_folder: Path, tmp_path: Path
) -> None:
    """Their trainer goes on instead: clipping by an infinite norm sets every gradient to 0."""
    torch.manual_seed(0)
    parent = tmp_path / "long"
    GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=300,
            hidden_size=96,
            num_attention_heads=12,
            num_hidden_layers=1,
            intermediate_size=64,
            max_position_embeddings=2048,
        )
    ).save_pretrained(parent)
    (parent / "tokenizer.json").write_bytes((tokenizer_folder / "tokenizer.json").read_bytes())
    convert(parent, tmp_path / "child", ConvertOptions(preset="official"))
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time a fox lived at the lake. " * 800)
    long = replace(
        options,
        model=tmp_path / "child",
        data=(str(text),),
        context=2048,
        batch_size=1,
        tokens=2048,
    )
    with pytest.raises(TrainingError, match="not finite at step 0"):
        train(long)
    train(replace(long, decay_tables=False))


def test_other_presets_have_no_tables(parents: dict[str, Path], tmp_path: Path) -> None:
    convert(parents["llama"], tmp_path / "child")
    with pytest.raises(TrainingError, match="--preset official"):
        with_decay_tables(load_dijiang(tmp_path / "child"))


def test_tables_that_would_overflow_are_refused_with_the_place(official: Path) -> None:
    config = official / "config.json"
    text = config.read_text().replace(
        '"max_position_embeddings": 128', '"max_position_embeddings": 3000'
    )
    config.write_text(text)
    with pytest.raises(TrainingError, match=r"overflows float32 after 2,79\d"):
        with_decay_tables(load_dijiang(official))
