"""`llm`, lm-evaluation-harness and GuideLLM, from the command line, as their users start them."""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import openai
import pytest
from conftest import DEMO, MODEL

BIN = Path(sys.executable).parent
PROMPT = "Once upon a time there was a"
DOCUMENTS = [
    {
        "context": "Once upon a time",
        "endings": [" there was a little girl.", " xq zz 17."],
        "gold": 0,
    },
    {
        "context": "The dog wanted to",
        "endings": [" of of of the.", " play with the ball."],
        "gold": 1,
    },
    {"context": "Lily was", "endings": [" very happy.", " seventeen parliament."], "gold": 0},
]
CHOICE_TASK = """
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


def test_llm(
    base_url: str, tmp_path: Path, run: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "llm"
    folder.mkdir()
    monkeypatch.setenv("LLM_USER_PATH", str(folder))
    server = {"model_name": MODEL, "api_base": base_url}
    models = [
        {"model_id": "ours", "supports_schema": True, **server},
        {"model_id": "text", "completion": True, **server},
    ]
    (folder / "extra-openai-models.yaml").write_text(json.dumps(models))  # Which is YAML, too.
    llm = BIN / "llm"
    greedy = ("-o", "temperature", "0", "-o", "max_tokens", "24")
    streamed = run(llm, "-m", "ours", *greedy, PROMPT)
    whole = run(llm, "-m", "ours", "--no-stream", *greedy, PROMPT)
    assert streamed == whole and len(whole) > 24
    assert run(llm, "-m", "text", *greedy, PROMPT).strip()

    schema = json.dumps(
        {
            "type": "object",
            "properties": {"age": {"enum": [3, 4]}},
            "required": ["age"],
            "additionalProperties": False,
        }
    )
    pet = json.loads(run(llm, "-m", "ours", "--schema", schema, *greedy, "The cat is four."))
    assert pet["age"] in (3, 4)


def logprob_of(sdk: openai.OpenAI, context: str, ending: str) -> float:
    """The log-probability of an ending, from the tokens of an echoed prompt."""
    answer = sdk.completions.create(
        model=MODEL,
        prompt=context + ending,
        echo=True,
        logprobs=1,
        max_tokens=0,
        extra_body={"add_special_tokens": False},  # As the harness has it.
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    return sum(
        value
        for value, offset in zip(logprobs.token_logprobs, logprobs.text_offset, strict=True)
        if offset >= len(context)
    )


def test_lm_eval_finds_our_own_logprobs(
    base_url: str, tmp_path: Path, run: Callable[..., str]
) -> None:
    data = tmp_path / "stories.jsonl"
    data.write_text("\n".join(map(json.dumps, DOCUMENTS)))
    (tmp_path / "stories.yaml").write_text(CHOICE_TASK.format(data=data))
    arguments = f"model={MODEL},base_url={base_url}/completions,tokenizer={DEMO},num_concurrent=2"
    run(
        *(BIN / "lm_eval", "run", "--model", "local-completions"),
        *("--model_args", f"{arguments},tokenizer_backend=huggingface"),
        *("--tasks", "stories", "--include_path", tmp_path, "--output_path", tmp_path / "out"),
        "--log_samples",
    )
    [results] = (tmp_path / "out").rglob("results_*.json")
    [samples] = (tmp_path / "out").rglob("samples_*.jsonl")
    sdk = openai.OpenAI(base_url=base_url, api_key="none")
    ours = [[logprob_of(sdk, d["context"], e) for e in d["endings"]] for d in DOCUMENTS]
    theirs = {}
    for sample in map(json.loads, samples.read_text().splitlines()):
        theirs[sample["doc_id"]] = [float(answer[0][0]) for answer in sample["resps"]]
    for i, expected in enumerate(ours):
        assert theirs[i] == pytest.approx(expected, abs=1e-4)
    right = sum(
        max(range(2), key=row.__getitem__) == document["gold"]
        for row, document in zip(ours, DOCUMENTS, strict=True)
    )
    accuracy = json.loads(results.read_text())["results"]["stories"]["acc,none"]
    assert math.isclose(accuracy, right / len(DOCUMENTS))
    # A model of stories prefers stories: that the right token is scored, not its neighbour.
    assert right == len(DOCUMENTS)


def test_guidellm(url: str, tmp_path: Path, run: Callable[..., str]) -> None:
    report = tmp_path / "report.json"
    run(
        *(BIN / "guidellm", "run", "--disable-console"),
        *("--backend", f"kind=openai_http,target={url},model={MODEL}"),
        *("--profile", "kind=concurrent,streams=2", "--constraint", "kind=max_requests,count=8"),
        *("--tokenizer", f"kind=huggingface_auto,model={DEMO}"),
        *("--data", "kind=synthetic_text,prompt_tokens=32,output_tokens=16"),
        *("--output", f"kind=json,path={report}"),
        cwd=tmp_path,
    )
    [benchmark] = json.loads(report.read_text())["benchmarks"]
    totals = benchmark["metrics"]["request_totals"]
    assert totals["successful"] >= 8 and totals["errored"] == 0
    tokens = benchmark["metrics"]["output_token_count"]["successful"]
    assert tokens["mean"] == 16
