from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from dijiang_runtime.conversion.data import load_tokenizer
from dijiang_runtime.conversion.errors import DataError
from dijiang_runtime.conversion.tokenizer import train_tokenizer


@pytest.mark.parametrize(
    "text", ["Once upon a time.\n", "  spaces  ", "naïve 漢字 🦊", "tab\tand\r\nbreak"]
)
def test_any_text_survives_a_round_trip(tokenizer_folder: Path, text: str) -> None:
    tokenizer = load_tokenizer(tokenizer_folder)
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_every_text_starts_with_the_end_of_text_token(tokenizer_folder: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_folder)
    assert tokenizer.encode("Once").ids[0] == tokenizer.token_to_id("<|endoftext|>") == 0
    assert tokenizer.encode("").ids == [0]


def test_frequent_words_are_one_token(tokenizer_folder: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_folder)
    assert tokenizer.get_vocab_size() == 300
    assert len(tokenizer.encode(" time", add_special_tokens=False).ids) == 1


def test_transformers_reads_the_folder_as_we_do(tokenizer_folder: Path) -> None:
    theirs = PreTrainedTokenizerFast.from_pretrained(tokenizer_folder)
    text = "Once upon a time a fox lived."
    assert theirs(text)["input_ids"] == load_tokenizer(tokenizer_folder).encode(text).ids
    assert theirs.eos_token == theirs.bos_token == "<|endoftext|>"


def test_a_vocabulary_smaller_than_the_bytes_is_refused(stories: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="257"):
        train_tokenizer([stories], tmp_path, vocab_size=256)


def test_no_text_is_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    with pytest.raises(DataError, match="No text"):
        train_tokenizer([empty], tmp_path / "out")
