import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from dijiang_runtime.conversion.convert import ConvertOptions, convert
from dijiang_runtime.conversion.data import load_tokenizer
from dijiang_runtime.conversion.errors import ConversionError
from dijiang_runtime.conversion.evaluate import EvaluateOptions, evaluate
from dijiang_runtime.conversion.sources import read_documents
from dijiang_runtime.errors import ModelLoadError
from dijiang_runtime.models.loader import load_model
from dijiang_runtime.models.serving import DtypeChoice


def loss_by_hand(logits_of, ids: list[int], context: int) -> float:
    """Token by token, in float64: each block is predicted from its own start."""
    total, count = 0.0, 0
    for start in range(0, len(ids) - context, context):
        block = ids[start : start + context + 1]
        logits = logits_of(torch.tensor([block[:-1]]))[0].double()
        for row, target in zip(logits, block[1:], strict=True):
            total += torch.logsumexp(row, 0).item() - row[target].item()
            count += 1
    return total / count


@pytest.mark.parametrize("kind", ["vanilla", "dijiang"])
@pytest.mark.parametrize("family", ["gpt_neox", "llama", "opt"])
def test_loss_equals_an_independent_computation(
    parents: dict[str, Path], stories: Path, tmp_path: Path, family: str, kind: str
) -> None:
    folder = parents[family]
    if kind == "dijiang":
        convert(folder, tmp_path / "out")
        folder = tmp_path / "out"
        logits_of = load_model(folder)
    else:
        model = AutoModelForCausalLM.from_pretrained(folder).eval()

        def logits_of(ids: torch.Tensor) -> torch.Tensor:
            return model(input_ids=ids).logits

    tokenizer = load_tokenizer(folder)
    ids = [i for text in read_documents(stories) for i in tokenizer.encode(text).ids]
    result = evaluate(folder, [stories], EvaluateOptions(context=24, batch_size=5, max_tokens=600))

    with torch.no_grad():
        expected = loss_by_hand(logits_of, ids[:601], 24)
    assert result.loss == pytest.approx(expected, rel=1e-5)
    assert result.perplexity == pytest.approx(math.exp(expected), rel=1e-4)
    assert (result.kind, result.num_tokens) == (kind, 600)


def test_a_folder_without_weights_is_refused(
    tokenizer_folder: Path, stories: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConversionError, match=r"no readable config\.json"):
        evaluate(tokenizer_folder, [stories], EvaluateOptions())
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ConversionError, match="pickles"):
        evaluate(tmp_path, [stories], EvaluateOptions())


@pytest.mark.parametrize("preset", ["dijiang", "dijiang+window"])
@pytest.mark.parametrize(("dtype", "distance"), [("float32", 1e-5), ("int8", 2e-2)])
def test_the_served_models_loss_is_that_of_the_trained_one_but_for_its_weight_format(
    parents: dict[str, Path],
    stories: Path,
    tmp_path: Path,
    preset: str,
    dtype: DtypeChoice,
    distance: float,
) -> None:
    options = ConvertOptions(preset=preset)
    convert(parents["llama"], tmp_path / "out", options)
    # Neither whole chunks nor whole tiles.
    cut = {"context": 77, "max_tokens": 500}
    trained = evaluate(tmp_path / "out", [stories], EvaluateOptions(**cut))

    served = evaluate(tmp_path / "out", [stories], EvaluateOptions(**cut, dtype=dtype))

    assert served.loss == pytest.approx(trained.loss, rel=distance)
    if dtype == "int8":
        assert served.loss != trained.loss
    assert served.num_parameters == trained.num_parameters


def test_a_dtype_is_refused_for_what_cannot_be_served(
    parents: dict[str, Path], stories: Path
) -> None:
    with pytest.raises(ModelLoadError, match="llama"):
        evaluate(parents["llama"], [stories], EvaluateOptions(dtype="float32"))
