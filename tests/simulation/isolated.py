"""What a request must be answered, computed alone and in one go, from the API's contract."""

import codecs
from dataclasses import dataclass
from functools import cache

from dijiang_runtime.request import FinishReason, Request, SamplingParams
from tests.simulation.model import EMPTY_STATE, EOS, VOCABULARY, next_token, read


@dataclass(frozen=True)
class Expected:
    """A whole answer."""

    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    stop_reason: str | int | None


@cache
def complete_text(data: bytes) -> str:
    """The text of all characters that are complete."""
    return codecs.getincrementaldecoder("utf-8")(errors="replace").decode(data)


def first_stop(before: str, after: str, stops: tuple[str, ...]) -> tuple[int, str] | None:
    """Where and which: the stop string that is complete first within the newest text."""
    for end in range(len(before) + 1, len(after) + 1):
        matching = [stop for stop in stops if after[:end].endswith(stop)]
        if matching:
            longest = max(matching, key=len)
            return end - len(longest), longest
    return None


def prompt_tail(prompt: tuple[int, ...]) -> bytes:
    """The bytes of a character that the prompt begins and does not finish."""
    data = b"".join(VOCABULARY[t] for t in prompt[-8:])
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    decoder.decode(data)
    return decoder.getstate()[0]


def expect(request: Request) -> Expected:
    """The only answer that `request` may get when nothing fails."""
    sampling, state = request.sampling, EMPTY_STATE
    for token_id in request.prompt_token_ids:
        state = read(state, token_id)
    ids: list[int] = []
    data, text = b"", ""
    while len(ids) < sampling.max_tokens:
        token_id = next_token(state)
        state = read(state, token_id)
        ids.append(token_id)
        may_stop = len(ids) > sampling.min_tokens
        if may_stop and token_id in sampling.stop_token_ids:
            if sampling.include_stop_str_in_output:
                data += VOCABULARY[token_id]
            return _answer(ids, data, FinishReason.STOP, token_id)
        if may_stop and token_id == EOS and not sampling.ignore_eos:
            return _answer(ids, data, FinishReason.STOP, None)
        data += VOCABULARY[token_id]
        before, text = text, complete_text(data)
        if may_stop and (found := first_stop(before, text, sampling.stop)):
            return _stopped(ids, text, found, sampling)
    return _answer(ids, data, FinishReason.LENGTH, None)


def _answer(ids: list[int], data: bytes, reason: FinishReason, stop: int | None) -> Expected:
    return Expected(tuple(ids), data.decode("utf-8", errors="replace"), reason, stop)


def _stopped(
    ids: list[int], text: str, found: tuple[int, str], sampling: SamplingParams
) -> Expected:
    start, stop = found
    end = start + len(stop) if sampling.include_stop_str_in_output else start
    return Expected(tuple(ids), text[:end], FinishReason.STOP, stop)
