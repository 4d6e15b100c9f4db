from pathlib import Path

import pytest

from dijiang_runtime.conversion.sampling import SamplingOptions, sample_documents
from dijiang_runtime.conversion.sources import read_documents

OPTIONS = SamplingOptions(
    num_bytes=500, batch_size=64, temperature=1.5, top_p=1.0, min_characters=1
)


def test_sampled_documents_are_written_between_separators(
    parents: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "sampled.txt"
    sizes: list[int] = []
    num_documents = sample_documents(parents["gpt_neox"], out, OPTIONS, sizes.append)
    assert sizes[-1] >= 500
    # A random model may write separators of its own, or only spaces: never fewer marks than texts.
    assert out.read_text().count("<|endoftext|>\n") >= num_documents > 0
    assert 0 < len(list(read_documents(out)))


def test_a_seed_fixes_the_text(parents: dict[str, Path], tmp_path: Path) -> None:
    for name in ("a", "b"):
        sample_documents(parents["gpt_neox"], tmp_path / name, OPTIONS)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("minimum", [10, 40])
def test_short_documents_are_dropped(
    parents: dict[str, Path], tmp_path: Path, minimum: int
) -> None:
    options = SamplingOptions(num_bytes=300, batch_size=64, temperature=1.5, min_characters=minimum)
    sample_documents(parents["gpt_neox"], tmp_path / "out", options)
    texts = (tmp_path / "out").read_text().split("\n<|endoftext|>\n")[:-1]
    assert texts and min(len(text) for text in texts) >= minimum
