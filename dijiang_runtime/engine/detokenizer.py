"""Token ids to text, token by token, and the search for stop strings in that text."""

import codecs
from collections.abc import Sequence as Seq
from dataclasses import dataclass

from dijiang_runtime.tokenizer import Tokenizer

_MAX_CHAR_BYTES = 4


class Detokenizer:
    """One sequence's text, as it grows.

    A character is given out when its last byte has arrived, never in parts: at most three bytes
    are held. A genuine U+FFFD is a character like any other and is not held at all.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Seq[int], *, shown: Seq[int] = ()) -> None:
        """Begin behind a prompt. `shown` are the special tokens that are part of the text."""
        self._tokenizer = tokenizer
        self._shown = frozenset(shown)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        # A prompt of token ids may end inside a character, which the answer may complete.
        self._prompt_tail = _incomplete_tail(_last_bytes(tokenizer, prompt))

    def add(self, token_id: int) -> str:
        """Return the text that this token completes."""
        if self._tokenizer.is_special(token_id) and token_id not in self._shown:
            return ""
        data = self._tokenizer.token_bytes(token_id)
        if self._prompt_tail and data:
            # An answer that does not go on with the prompt's character says nothing about it.
            if _is_incomplete_or_whole(self._prompt_tail + data[:1]):
                data = self._prompt_tail + data
            self._prompt_tail = b""
        return self._decoder.decode(data)

    def finish(self) -> str:
        """Return what an incomplete character at the end decodes to: U+FFFD, or nothing."""
        return self._decoder.decode(b"", final=True)


@dataclass(frozen=True, slots=True)
class StopMatch:
    """Text up to the end of the answer, and the stop string that ended it."""

    text: str
    stop: str


class StopMatcher:
    """Looks for stop strings in a growing text, and holds back what may be the start of one.

    The stop string that is complete first wins; of those complete at the same character, the one
    that began first. Only the longest suffix that is a proper prefix of a stop string is held.
    """

    def __init__(self, stops: Seq[str], *, include_stop: bool = False) -> None:
        self._stops = tuple(stops)
        self._include_stop = include_stop
        self._held = ""

    def add(self, text: str, *, may_stop: bool = True) -> str | StopMatch:
        """Return the text that can be given out now, or the match that ends it.

        Args:
            text: What is new.
            may_stop: Whether a stop string that `text` completes counts.
        """
        if not self._stops:
            return text
        num_old = len(self._held)
        text = self._held + text
        if may_stop and (found := self._find(text, num_old)):
            start, stop = found
            return StopMatch(text[: start + len(stop) if self._include_stop else start], stop)
        num_held = self._num_held(text)
        self._held = text[len(text) - num_held :]
        return text[: len(text) - num_held]

    def finish(self) -> str:
        """Return what was held back, now that nothing can complete it."""
        held, self._held = self._held, ""
        return held

    def _find(self, text: str, num_old: int) -> tuple[int, str] | None:
        """The winning stop string and where it starts. It must end beyond `num_old` characters."""
        found = []
        for stop in self._stops:
            start = text.find(stop, max(0, num_old - len(stop) + 1))
            if start >= 0:
                found.append((start + len(stop), start, stop))
        if not found:
            return None
        _, start, stop = min(found)
        return start, stop

    def _num_held(self, text: str) -> int:
        longest = 0
        for stop in self._stops:
            for size in range(min(len(stop) - 1, len(text)), longest, -1):
                if text.endswith(stop[:size]):
                    longest = size
                    break
        return longest


def _last_bytes(tokenizer: Tokenizer, prompt: Seq[int]) -> bytes:
    """At least the bytes of the prompt's last character, if it has any."""
    data = b""
    for token_id in reversed(prompt):
        if len(data) >= _MAX_CHAR_BYTES:
            break
        if not tokenizer.is_special(token_id):
            data = tokenizer.token_bytes(token_id) + data
    return data


def _incomplete_tail(data: bytes) -> bytes:
    """The bytes at the end that begin a character without finishing it."""
    for size in range(min(len(data), _MAX_CHAR_BYTES - 1), 0, -1):
        tail = data[-size:]
        if _pending(tail) == tail:
            return tail
    return b""


def _is_incomplete_or_whole(data: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")(errors="strict").decode(data)
    except UnicodeDecodeError:
        return False
    return True


def _pending(data: bytes) -> bytes:
    """What an incremental decoder that has read `data` is still holding."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    decoder.decode(data)
    return decoder.getstate()[0]
