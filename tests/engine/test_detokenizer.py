"""Text as it grows: nothing is lost, nothing leaks, nothing comes in halves."""

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from dijiang_runtime.engine.detokenizer import Detokenizer, StopMatch, StopMatcher
from dijiang_runtime.tokenizer import Tokenizer
from tests.conftest import EOS, make_tokenizer

TOKENIZER = Tokenizer(make_tokenizer())
BYTE_TOKEN = {
    TOKENIZER.token_bytes(i)[0]: i
    for i in range(TOKENIZER.vocab_size)
    if len(TOKENIZER.token_bytes(i)) == 1 and not TOKENIZER.is_special(i)
}

token_ids = st.lists(st.integers(0, TOKENIZER.vocab_size + 5), max_size=30)
# Valid text with characters of one to four bytes, cut into bytes.
texts = st.text(alphabet="aé€😀\ufffd\U0010ffff", max_size=12)


def byte_tokens(data: bytes) -> list[int]:
    return [BYTE_TOKEN[byte] for byte in data]


def stream(ids: list[int], prompt: list[int] | None = None) -> list[str]:
    detokenizer = Detokenizer(TOKENIZER, prompt or [])
    return [*(detokenizer.add(token_id) for token_id in ids), detokenizer.finish()]


@given(token_ids)
@settings(max_examples=300, deadline=None)
def test_the_parts_make_up_the_whole(ids: list[int]) -> None:
    assert "".join(stream(ids)) == TOKENIZER.decode(ids)


@given(texts)
@settings(max_examples=300, deadline=None)
def test_a_character_comes_with_its_last_byte(text: str) -> None:
    expected = []
    for char in text:
        expected += [""] * (len(char.encode()) - 1) + [char]

    assert stream(byte_tokens(text.encode())) == [*expected, ""]


def test_a_genuine_replacement_character_is_not_held() -> None:
    ids = byte_tokens("\ufffd".encode() * 3)

    assert stream(ids) == ["", "", "\ufffd", "", "", "\ufffd", "", "", "\ufffd", ""]


def test_invalid_bytes_are_held_for_at_most_three_tokens() -> None:
    ids = byte_tokens(b"\xf0\x9f\x98\xf0\x9f\x98\xf0\x9f\x98")

    given_out = 0
    for i, text in enumerate(stream(ids)):
        given_out += len(text)
        assert given_out >= i // 3


@given(texts, st.data())
@settings(max_examples=300, deadline=None)
def test_an_answer_completes_the_character_that_the_prompt_began(
    text: str, data: st.DataObject
) -> None:
    whole = text.encode()
    cut = data.draw(st.integers(0, len(whole)))
    begun = len(whole[:cut].decode(errors="ignore"))

    answer = stream(byte_tokens(whole[cut:]), prompt=byte_tokens(whole[:cut]))

    expected = text[begun:] if cut < len(whole) else ""
    assert "".join(answer) == expected


@given(token_ids, token_ids)
@settings(max_examples=300, deadline=None)
def test_the_prompt_never_leaks(prompt: list[int], ids: list[int]) -> None:
    alone, after_prompt = TOKENIZER.decode(ids), "".join(stream(ids, prompt))

    # The only difference: bytes at the start may complete the prompt's last character.
    assert after_prompt == alone or alone.endswith(after_prompt[1:])


def test_a_prompt_that_ends_mid_character_is_forgotten_if_the_answer_goes_elsewhere() -> None:
    assert stream(byte_tokens(b"ab"), prompt=byte_tokens(b"\xe2\x82")) == ["a", "b", ""]


def test_special_tokens_are_not_text_and_do_not_cut_characters() -> None:
    eos = TOKENIZER.token_to_id(EOS)
    assert eos is not None
    first, second, third = byte_tokens("€".encode())

    assert stream([first, eos, second, eos, third]) == ["", "", "", "", "€", ""]


def find_stop(text: str, stops: list[str], *, include: bool = False) -> tuple[str, str | None]:
    """The answer that ends at the stop string that is complete first, by trying every end."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            longest = max(complete, key=len)
            return text[: end if include else end - len(longest)], longest
    return text, None


def pieces_of(text: str, cuts: list[int]) -> list[str]:
    edges = [0, *sorted(c % (len(text) + 1) for c in cuts), len(text)]
    return [text[a:b] for a, b in zip(edges, edges[1:], strict=False)]


@given(
    text=st.text(alphabet="abc", max_size=25),
    stops=st.lists(st.text(alphabet="abc", min_size=1, max_size=5), max_size=4),
    cuts=st.lists(st.integers(0, 100), max_size=10),
    include=st.booleans(),
)
@settings(max_examples=400, deadline=None)
def test_stop_strings_are_found_however_the_text_is_cut(
    text: str, stops: list[str], cuts: list[int], include: bool
) -> None:
    matcher = StopMatcher(stops, include_stop=include)
    given_out, stopped_by = "", None
    for piece in pieces_of(text, cuts):
        found = matcher.add(piece)
        if isinstance(found, StopMatch):
            given_out, stopped_by = given_out + found.text, found.stop
            break
        given_out += found
    else:
        given_out += matcher.finish()

    assert (given_out, stopped_by) == find_stop(text, stops, include=include)


@given(
    text=st.text(alphabet="abc", max_size=20),
    stops=st.lists(st.text(alphabet="abc", min_size=1, max_size=5), min_size=1, max_size=4),
)
@settings(max_examples=300, deadline=None)
def test_only_what_may_begin_a_stop_string_is_held(text: str, stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    seen = given_out = ""
    for char in text:
        seen += char
        found = matcher.add(char)
        if isinstance(found, StopMatch):
            return
        given_out += found
        beginnings = [stop[:n] for stop in stops for n in range(len(stop))]
        held = max((b for b in beginnings if seen.endswith(b)), key=len)
        assert given_out + held == seen


def test_a_stop_string_that_may_not_stop_yet_is_text() -> None:
    matcher = StopMatcher(["END"])

    assert matcher.add("a END ", may_stop=False) == "a END "
    assert matcher.add("EN", may_stop=False) == ""
    # It began before it counted, but is complete only now.
    assert matcher.add("D", may_stop=True) == StopMatch("", "END")


@pytest.mark.parametrize("include", [False, True])
def test_the_answer_ends_with_or_before_the_stop_string(include: bool) -> None:
    matcher = StopMatcher(["\n\n"], include_stop=include)

    assert matcher.add("one\n") == "one"
    assert matcher.add("\ntwo") == StopMatch("\n\n" if include else "", "\n\n")
