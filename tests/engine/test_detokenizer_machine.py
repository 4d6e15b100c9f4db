"""Tokens, special tokens and stop strings in any order: text comes out once, whole, in time."""

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dijiang_runtime.engine.detokenizer import Detokenizer, StopMatch, StopMatcher
from tests.engine.test_detokenizer import BYTE_TOKEN, TOKENIZER, find_stop

SPECIAL = [i for i in range(TOKENIZER.vocab_size) if TOKENIZER.is_special(i)]
STOPS = st.lists(st.text(alphabet="ab\u20ac", min_size=1, max_size=4), max_size=3)
MAX_HELD_BYTES = 3


class Text(RuleBasedStateMachine):
    """One answer. The reference decodes all bytes from the start, and tries every end."""

    @initialize(stops=STOPS, include=st.booleans())
    def begin(self, stops: list[str], include: bool) -> None:
        self.detokenizer = Detokenizer(TOKENIZER, [])
        self.matcher = StopMatcher(stops, include_stop=include)
        self.stops, self.include = stops, include
        self.data = b""
        self.decoded = self.given = ""
        self.stopped_by: str | None = None
        self.is_over = False

    def take(self, text: str) -> None:
        self.decoded += text
        found = self.matcher.add(text)
        if isinstance(found, StopMatch):
            self.given, self.stopped_by = self.given + found.text, found.stop
            self.is_over = True
        else:
            self.given += found

    @precondition(lambda self: not self.is_over)
    @rule(text=st.text(alphabet="ab\u20ac\U0001f600", min_size=1, max_size=3))
    def characters(self, text: str) -> None:
        for byte in text.encode():
            self.add_byte(byte)

    @precondition(lambda self: not self.is_over)
    @rule(byte=st.sampled_from(sorted(BYTE_TOKEN)))
    def add_byte(self, byte: int) -> None:
        if not self.is_over:
            self.data += bytes([byte])
            self.take(self.detokenizer.add(BYTE_TOKEN[byte]))

    @precondition(lambda self: not self.is_over)
    @rule(token=st.integers(0, TOKENIZER.vocab_size - 1))
    def add_token(self, token: int) -> None:
        if not TOKENIZER.is_special(token):
            self.data += TOKENIZER.token_bytes(token)
        self.take(self.detokenizer.add(token))

    @precondition(lambda self: not self.is_over and SPECIAL)
    @rule(token=st.sampled_from(SPECIAL or [0]))
    def special_tokens_say_nothing(self, token: int) -> None:
        assert self.detokenizer.add(token) == ""

    @precondition(lambda self: self.is_over)
    @rule(stops=STOPS, include=st.booleans())
    def begin_again(self, stops: list[str], include: bool) -> None:
        self.begin(stops, include)

    @precondition(lambda self: not self.is_over)
    @rule()
    def finish(self) -> None:
        self.take(self.detokenizer.finish())
        if not self.is_over:
            assert self.decoded == self.data.decode(errors="replace")
            self.given += self.matcher.finish()
        self.is_over = True
        assert (self.given, self.stopped_by) == self.expected()

    @invariant()
    def nothing_is_wrong_or_late(self) -> None:
        whole = self.data.decode(errors="replace")
        assert whole.startswith(self.decoded)
        early = self.data[: max(0, len(self.data) - MAX_HELD_BYTES)].decode(errors="ignore")
        if not self.is_over:
            assert len(self.decoded) >= len(early)
            assert self.decoded.startswith(self.given)
            assert find_stop(self.decoded, self.stops)[1] is None
        else:
            assert (self.given, self.stopped_by) == self.expected()

    def expected(self) -> tuple[str, str | None]:
        return find_stop(self.decoded, self.stops, include=self.include)


TestText = Text.TestCase
TestText.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
