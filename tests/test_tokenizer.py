import json
from pathlib import Path

import hypothesis.strategies as st
import pytest
import tokenizers
from hypothesis import given, settings
from tokenizers import AddedToken, decoders, models, normalizers

from dijiang_runtime.errors import ModelLoadError, UnsupportedModelError
from dijiang_runtime.tokenizer import LONG_TEXT, Tokenizer
from tests.conftest import EOS, make_tokenizer

BYTE_LEVEL = make_tokenizer()


def sentencepiece_like() -> tokenizers.Tokenizer:
    """The decoder of LLaMA's tokenizers: words begin with a mark, other bytes have own tokens."""
    vocab = {"<unk>": 0, "</s>": 1, **{f"<0x{i:02X}>": 2 + i for i in range(256)}}
    for piece in ["\u2581", "\u2581the", "\u2581cat", "s", "a", "\u20ac"]:
        vocab[piece] = len(vocab)
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.add_special_tokens([AddedToken("</s>", special=True)])
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return tokenizer


@given(st.text(max_size=40))
@settings(max_examples=300, deadline=None)
def test_every_text_survives_encoding_and_decoding(text: str) -> None:
    tokenizer = Tokenizer(BYTE_LEVEL)

    assert tokenizer.decode(tokenizer.encode(text, allow_special=False)) == text


@given(st.lists(st.integers(0, BYTE_LEVEL.get_vocab_size() - 1), max_size=20), st.booleans())
@settings(max_examples=500, deadline=None)
def test_decoding_agrees_with_the_library_for_byte_level_tokenizers(
    ids: list[int], skip: bool
) -> None:
    expected = BYTE_LEVEL.decode(ids, skip_special_tokens=skip)

    assert Tokenizer(BYTE_LEVEL).decode(ids, skip_special_tokens=skip) == expected


def test_decoding_agrees_with_the_library_for_sentencepiece_tokenizers() -> None:
    library = sentencepiece_like()
    tokenizer = Tokenizer(library)

    for pieces in (
        ["\u2581the", "\u2581cat", "s"],
        ["s", "\u2581cat", "\u20ac"],
        ["\u2581", "\u2581the", "</s>", "a"],
        ["a", "<0xE2>", "<0x82>", "<0xAC>", "s"],
    ):
        ids = [library.token_to_id(piece) for piece in pieces]
        assert None not in ids
        assert tokenizer.decode(ids) == library.decode(ids)


def test_tokens_inside_a_text_keep_their_leading_space() -> None:
    tokenizer = Tokenizer(sentencepiece_like())
    token_id = tokenizer.token_to_id("\u2581cat")
    assert token_id is not None

    assert tokenizer.token_bytes(token_id) == b" cat"


def test_special_tokens_in_a_users_text_are_plain_text() -> None:
    tokenizer = Tokenizer(BYTE_LEVEL)
    eos = tokenizer.token_to_id(EOS)

    assert eos in tokenizer.encode(f"a{EOS}b")
    plain = tokenizer.encode(f"a{EOS}b", allow_special=False)
    assert eos not in plain
    assert tokenizer.decode(plain) == f"a{EOS}b"


def test_long_texts_are_encoded_like_short_ones() -> None:
    tokenizer = Tokenizer(BYTE_LEVEL)
    text = "the quick brown fox " * LONG_TEXT

    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_ids_without_a_token_are_no_text() -> None:
    tokenizer = Tokenizer(BYTE_LEVEL)

    for token_id in (-1, tokenizer.vocab_size, 2**40):
        assert tokenizer.token_bytes(token_id) == b""
        assert tokenizer.id_to_token(token_id) is None


def test_the_bytes_of_a_special_token_are_its_spelling() -> None:
    tokenizer = Tokenizer(BYTE_LEVEL)
    eos = tokenizer.token_to_id(EOS)
    assert eos is not None

    assert tokenizer.token_bytes(eos) == EOS.encode()
    assert tokenizer.decode([eos]) == ""
    assert tokenizer.decode([eos], skip_special_tokens=False) == EOS


def save(folder: Path, **settings: object) -> None:
    BYTE_LEVEL.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def test_loading_finds_bos_eos_and_the_template(tmp_path: Path) -> None:
    save(
        tmp_path,
        bos_token={"content": "<|pad|>"},
        eos_token=EOS,
        chat_template=[{"name": "other", "template": "o"}, {"name": "default", "template": "t"}],
    )
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 8]}))

    tokenizer = Tokenizer.load(tmp_path)

    assert tokenizer.bos_id == tokenizer.token_to_id("<|pad|>")
    assert tokenizer.eos_ids == (0, 7, 8)
    assert tokenizer.chat_template == "t"

    (tmp_path / "chat_template.jinja").write_text("from the file")
    assert Tokenizer.load(tmp_path).chat_template == "from the file"


def test_a_folder_without_a_usable_tokenizer_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"no tokenizer\.json"):
        Tokenizer.load(tmp_path)

    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelLoadError, match="cannot be read"):
        Tokenizer.load(tmp_path)

    save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(ModelLoadError, match="JSON object"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("decoder", [None, decoders.WordPiece()])
def test_an_unknown_decoder_is_an_error(decoder: decoders.Decoder | None) -> None:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    if decoder is not None:
        tokenizer.decoder = decoder

    with pytest.raises(UnsupportedModelError, match="decoder"):
        Tokenizer(tokenizer)
