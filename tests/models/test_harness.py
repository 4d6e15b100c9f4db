"""lm-evaluation-harness on our folders, through transformers' Auto classes."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from dijiang_runtime.models.loader import load_model
from dijiang_runtime.tokenizer import Tokenizer
from server.commands.common import demo_model_folder

pytestmark = pytest.mark.skipif(
    find_spec("lm_eval") is None, reason="make test-harness installs lm-evaluation-harness"
)
# As docs/conversion.md has it.
PROGRAM = "import dijiang_runtime; from lm_eval.__main__ import cli_evaluate; cli_evaluate()"
DOCUMENTS = [
    ("Once upon a time", (" there was a little girl.", " xq zz 17."), 0),
    ("The dog wanted to", (" of of of the.", " play with the ball."), 1),
    ("Lily was", (" very happy.", " seventeen parliament."), 0),
]
TASK = """
task: stories
dataset_path: json
dataset_kwargs:
  data_files: {data}
output_type: multiple_choice
test_split: train
doc_to_text: context
doc_to_choice: endings
doc_to_target: gold
target_delimiter: ""
metric_list:
  - metric: acc
"""


def test_log_likelihoods_of_choices_are_the_decoders(tmp_path: Path) -> None:
    rows = [{"context": c, "endings": e, "gold": gold} for c, e, gold in DOCUMENTS]
    data = tmp_path / "stories.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "stories.yaml").write_text(TASK.format(data=data))
    command = [sys.executable, "-c", PROGRAM, "run", "--model", "hf", "--device", "cpu"]
    command += ["--model_args", f"pretrained={demo_model_folder()},dtype=float32"]
    command += ["--tasks", "stories", "--include_path", str(tmp_path), "--log_samples"]
    command += ["--output_path", str(tmp_path / "out")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr

    [file] = (tmp_path / "out").rglob("samples_*.jsonl")
    samples = {s["doc_id"]: s["resps"] for s in map(json.loads, file.read_text().splitlines())}
    for i, (context, endings, gold) in enumerate(DOCUMENTS):
        expected = [log_likelihood(context, ending) for ending in endings]
        assert [float(answer[0][0]) for answer in samples[i]] == pytest.approx(expected, abs=1e-3)
        assert expected.index(max(expected)) == gold
    [file] = (tmp_path / "out").rglob("results_*.json")
    assert json.loads(file.read_text())["results"]["stories"]["acc,none"] == 1.0


@torch.inference_mode()
def log_likelihood(context: str, ending: str) -> float:
    """Of the ending, in nats, by the decoder token by token."""
    tokenizer = Tokenizer.load(demo_model_folder())
    ids = torch.tensor(tokenizer.encode(context + ending))
    logprobs = load_model(demo_model_folder())(ids[None])[0].float().log_softmax(-1)
    first = len(tokenizer.encode(context))
    return sum(float(logprobs[i - 1, ids[i]]) for i in range(first, len(ids)))
