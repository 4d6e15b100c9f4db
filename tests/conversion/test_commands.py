"""The conversion commands as a user calls them, from text file to evaluated model."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from server.cli import app


def dijiang(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


def test_from_text_to_a_trained_dijiang_model(stories: Path, tmp_path: Path) -> None:
    config = tmp_path / "parent.json"
    config.write_text(
        json.dumps(
            {
                "model_type": "gpt_neox",
                "vocab_size": 300,
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 1,
                "num_attention_heads": 4,
                "max_position_embeddings": 64,
                "bos_token_id": 0,
                "eos_token_id": 0,
            }
        )
    )
    token, parent, child, trained = (tmp_path / name for name in ("tok", "parent", "child", "out"))
    sizes = ["--tokens", 1280, "--context", 16, "--batch-size", 4]

    dijiang("tokenizer", "--data", stories, "--out", token, "--vocab-size", 300)
    dijiang("train", token, "--config", config, "--data", stories, "--out", parent, *sizes)
    table = dijiang("convert", parent, child).stdout
    log = dijiang(
        *["train", child, "--teacher", parent, "--data", stories, "--heldout", stories],
        *["--out", trained, "--align-fraction", 0.5, *sizes],
    ).stderr
    losses = [
        json.loads(dijiang("eval", folder, "--data", stories, "--json").stdout)
        for folder in (parent, trained)
    ]

    assert "attention.q_proj.weight" in table and "parameters copied" in table
    assert "distil step 20/20" in log and "held-out" in log
    assert [loss["kind"] for loss in losses] == ["vanilla", "dijiang"]
    assert losses[0]["num_tokens"] == losses[1]["num_tokens"]
    assert json.loads((trained / "provenance.json").read_text())[0]["from"] == "random weights"


def test_convert_reports_as_json(parents: dict[str, Path], tmp_path: Path) -> None:
    report = json.loads(dijiang("convert", parents["opt"], tmp_path / "out", "--json").stdout)
    assert report["copied_parameters"] > report["new_parameters"] > 0
    assert {"name", "shape", "count", "is_copied"} == report["tensors"][0].keys()


def test_eval_prints_loss_and_perplexity(parents: dict[str, Path], stories: Path) -> None:
    text = dijiang("eval", parents["llama"], "--data", stories, "--max-tokens", 100).stdout
    assert "nats per token" in text and "perplexity" in text


def test_sample_writes_a_text_file(parents: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "sampled.txt"
    text = dijiang("sample", parents["llama"], out, "--megabytes", 0.001, "--temperature", 2).stdout
    assert out.stat().st_size > 0 and "documents" in text


@pytest.mark.parametrize("command", ["convert", "train", "eval", "tokenizer", "sample"])
def test_help_shows_an_example(command: str) -> None:
    assert f"dijiang {command}" in dijiang(command, "--help").output
