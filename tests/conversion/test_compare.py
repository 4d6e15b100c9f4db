"""Loss by position, last words, recall by distance, and all of it side by side."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from dijiang_runtime.conversion.convert import convert
from dijiang_runtime.conversion.data import load_tokenizer
from dijiang_runtime.conversion.errors import DataError
from dijiang_runtime.conversion.evaluate import EvaluateOptions, buckets, evaluate
from dijiang_runtime.conversion.last_word import LastWordOptions, last_word_accuracy, split_passage
from dijiang_runtime.conversion.recall import RecallOptions, measure_recall
from dijiang_runtime.conversion.vanilla import load_vanilla
from server.cli import app


class Copier(torch.nn.Module):
    """Sees `reach` tokens back, and repeats what followed the last occurrence of its token."""

    kind, vocab_size, eos_token_id, max_length = "vanilla", 1000, None, None

    def __init__(self, reach: int) -> None:
        super().__init__()
        self.reach = reach

    @property
    def module(self) -> torch.nn.Module:
        return self

    def logits(self, token_ids: torch.Tensor) -> torch.Tensor:
        out = torch.zeros(*token_ids.shape, self.vocab_size)
        for b, ids in enumerate(token_ids.tolist()):
            for n, token in enumerate(ids):
                for j in range(n - 1, max(-1, n - self.reach - 1), -1):
                    if ids[j] == token:
                        out[b, n, ids[j + 1]] = 20.0
                        break
        return out


def test_recall_ends_where_a_model_has_forgotten() -> None:
    text = np.random.default_rng(0).integers(0, 1000, 20_000).astype(np.int32)
    options = RecallOptions(distances=(8, 32, 120), count=20)
    near, middle, far = measure_recall(Copier(reach=60), text, options)
    assert near.accuracy > 0.95 > 0.1 > near.control_accuracy
    assert middle.accuracy > 0.9
    assert middle.gain > 3
    assert far.accuracy < 0.1
    assert abs(far.gain) < 1


def test_buckets_hold_every_place_once() -> None:
    losses = torch.rand(100, dtype=torch.float64)
    found = list(buckets(losses, num_blocks=3))
    assert [(b.start, b.stop) for b in found] == [(0, 16), (16, 32), (32, 64), (64, 100)]
    assert found[1].loss == pytest.approx(float(losses[16:32].mean()))
    assert found[1].perplexity == pytest.approx(math.exp(found[1].loss))
    assert sum(b.num_tokens * b.loss for b in found) == pytest.approx(3 * float(losses.sum()))


def test_the_last_word_is_judged_as_a_loop_over_its_tokens_judges_it(
    parents: dict[str, Path], stories: Path, tokenizer_folder: Path
) -> None:
    options = LastWordOptions(context=64, batch_size=7)
    found = last_word_accuracy(parents["llama"], [stories], options)
    model, tokenizer = load_vanilla(parents["llama"]), load_tokenizer(tokenizer_folder)
    correct, loss, count = 0, 0.0, 0
    for story in stories.read_text().split("<|endoftext|>\n"):
        assert (passage := split_passage(story, tokenizer)) is not None
        assert tokenizer.decode(list(passage.ids[-passage.num_target :])).strip() == "end"
        with torch.no_grad():
            rows = model.logits(torch.tensor([passage.ids]))[0].double().log_softmax(-1)
        places = range(len(passage.ids) - passage.num_target, len(passage.ids))
        loss -= sum(float(rows[i - 1, passage.ids[i]]) for i in places)
        correct += all(int(rows[i - 1].argmax()) == passage.ids[i] for i in places)
        count += 1
    assert (found.num_passages, found.num_skipped) == (count, 0)
    assert found.accuracy == pytest.approx(correct / count)
    assert math.log(found.perplexity) == pytest.approx(loss / count, rel=1e-4)


def test_a_single_word_is_no_passage(tokenizer_folder: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_folder)
    assert split_passage("fox.", tokenizer) is None
    assert split_passage("a fox.", tokenizer) is not None


def test_parent_and_child_are_printed_and_plotted(
    parents: dict[str, Path], stories: Path, tmp_path: Path
) -> None:
    convert(parents["llama"], tmp_path / "child")
    picture = tmp_path / "compare.png"
    command = ["compare", str(parents["llama"]), str(tmp_path / "child"), "--data", str(stories)]
    command += ["--context", "64", "--max-tokens", "600"]
    shown = CliRunner().invoke(app, [*command, "--plot", str(picture)], env={"COLUMNS": "120"})
    assert shown.exit_code == 0, shown.output
    assert picture.read_bytes().startswith(b"\x89PNG")
    figures = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    expected = evaluate(tmp_path / "child", [stories], EvaluateOptions(context=64, max_tokens=600))
    assert figures[1]["evaluation"]["loss"] == pytest.approx(expected.loss)
    assert f"{expected.by_position[1].loss:.4f}" in shown.output
    assert [r["distance"] for r in figures[0]["recall"]] == [16, 32]


def test_a_text_longer_than_the_model_is_refused(parents: dict[str, Path], stories: Path) -> None:
    with pytest.raises(DataError, match="128 positions, fewer than 200"):
        evaluate(parents["opt"], [stories], EvaluateOptions(context=200))
    assert evaluate(parents["opt"], [stories], EvaluateOptions()).context == 128
    with pytest.raises(DataError, match="too few for a distance"):
        model = SimpleNamespace(max_length=None, module=torch.nn.Identity())
        measure_recall(model, np.zeros(50, np.int32), RecallOptions(distances=(64,)))
