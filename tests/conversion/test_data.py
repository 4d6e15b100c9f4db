import gzip
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from dijiang_runtime.conversion.data import (
    TrainingBatches,
    evaluation_blocks,
    load_tokenizer,
    pack_documents,
)
from dijiang_runtime.conversion.errors import DataError
from dijiang_runtime.conversion.sources import read_documents


def word_tokenizer(*, with_bos: bool) -> Tokenizer:
    vocab = {word: i for i, word in enumerate(["<eos>", "<bos>", "a", "b", "c"])}
    tokenizer = Tokenizer(WordLevel(vocab, unk_token="<eos>"))
    tokenizer.pre_tokenizer = Whitespace()
    if with_bos:
        tokenizer.post_processor = TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", 1)]
        )
    return tokenizer


def test_separator_lines_split_documents(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("one\ntwo\n<|endoftext|>\n\n<|endoftext|>\nthree with <|endoftext|> inside\n")
    assert list(read_documents(path)) == ["one\ntwo", "three with <|endoftext|> inside"]


def test_compressed_text_reads_the_same(stories: Path, tmp_path: Path) -> None:
    packed = tmp_path / "stories.txt.gz"
    packed.write_bytes(gzip.compress(stories.read_bytes()))
    assert list(read_documents(packed)) == list(read_documents(stories))


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", None], ids=["not UTF-8", "missing"])
def test_unreadable_text_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"text\.txt"):
        list(read_documents(path))


@pytest.mark.parametrize(
    ("with_bos", "expected"),
    [(True, [1, 2, 3, 1, 4]), (False, [2, 3, 0, 4, 0])],
    ids=["bos before", "eos after"],
)
def test_documents_are_separated_by_one_special_token(
    tmp_path: Path, with_bos: bool, expected: list[int]
) -> None:
    path = tmp_path / "text.txt"
    path.write_text("a b\n<|endoftext|>\nc\n")
    ids = pack_documents([path], word_tokenizer(with_bos=with_bos), eos_token_id=0)
    assert ids.tolist() == expected


def test_files_without_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("\n\n<|endoftext|>\n")
    with pytest.raises(DataError, match="No text"):
        pack_documents([path], word_tokenizer(with_bos=False), eos_token_id=0)


def test_an_epoch_shows_every_block_once_and_the_next_one_another_order() -> None:
    ids = np.arange(7 * 10 + 1, dtype=np.int32)
    batches = TrainingBatches(ids, context=10, batch_size=2, seed=3)
    assert batches.steps_per_epoch == 3

    epochs = [
        np.concatenate([batches.at(step).numpy() for step in range(start, start + 3)])
        for start in (0, 3)
    ]

    for rows in epochs:
        assert (np.diff(rows, axis=1) == 1).all(), "a block is consecutive text"
        assert len(np.unique(rows[:, :-1])) == rows[:, :-1].size, "no token twice in an epoch"
    assert epochs[0].tolist() != epochs[1].tolist()


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    ids = np.arange(1000, dtype=np.int32)
    first, again, other = (TrainingBatches(ids, 16, 4, seed) for seed in (1, 1, 2))
    first.at(2)
    assert first.at(5).equal(again.at(5))
    assert not first.at(5).equal(other.at(5))


def test_a_text_too_short_for_a_batch_is_refused() -> None:
    with pytest.raises(DataError, match=r"has 30 tokens.*needs 51"):
        TrainingBatches(np.zeros(30, dtype=np.int32), context=10, batch_size=4, seed=0)


def test_evaluation_predicts_every_token_but_the_first_once() -> None:
    blocks = evaluation_blocks(np.arange(41, dtype=np.int32), context=10)
    assert blocks[:, 1:].flatten().tolist() == list(range(1, 41))
    assert blocks[:, 0].tolist() == [0, 10, 20, 30]


def test_a_short_evaluation_text_is_one_block() -> None:
    assert evaluation_blocks(np.arange(5, dtype=np.int32), context=10).shape == (1, 5)
    with pytest.raises(DataError, match="two tokens"):
        evaluation_blocks(np.arange(1, dtype=np.int32), context=10)


def test_a_folder_without_fast_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="Cannot read"):
        load_tokenizer(tmp_path)
