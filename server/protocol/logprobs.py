"""Log probabilities, in the forms that the OpenAI API has for them, and vLLM's for prompts."""

import codecs
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from dijiang_runtime.request import PositionLogprobs, TokenLogprob


class CompletionLogprobs(msgspec.Struct, frozen=True):
    """Of the legacy completions API: parallel lists, one entry per token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class ChatAlternative(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[ChatAlternative]


class ChatLogprobs(msgspec.Struct, frozen=True):
    """Of the chat API: one object per output token."""

    content: list[ChatTokenLogprob]
    refusal: None = None


class PromptTokenLogprob(msgspec.Struct, frozen=True):
    logprob: float
    decoded_token: str


PromptLogprobs = list[dict[str, PromptTokenLogprob] | None]
"""vLLM's form: for each prompt token a mapping from token id; null for the first."""


@dataclass(frozen=True, slots=True)
class FirstToken:
    """The first token of a prompt, of which the engine reports nothing."""

    token_id: int
    text: str
    data: bytes


class TextOffsets:
    """Where tokens begin in a text, in characters, as they come.

    A token that goes on with a character begins where the character does.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._num_chars = 0

    def add(self, data: bytes) -> int:
        """Return where the next token begins, which stands for `data`."""
        offset = self._num_chars
        self._num_chars += len(self._decoder.decode(data))
        return offset


def completion_logprobs(
    positions: Iterable[PositionLogprobs | None],
    first: FirstToken,
    offsets: TextOffsets,
    *,
    as_ids: bool = False,
) -> CompletionLogprobs:
    """The legacy form of some positions.

    Args:
        positions: None stands for the first token of a prompt, which nothing predicts.
        first: That token.
        offsets: Has been told of the tokens before them.
        as_ids: Spell tokens as `token_id:N`.
    """
    result = CompletionLogprobs([], [], [], [])
    for position in positions:
        if position is None:
            result.text_offset.append(offsets.add(first.data))
            result.tokens.append(_id_label(first.token_id) if as_ids else first.text)
            result.token_logprobs.append(None)
            result.top_logprobs.append(None)
            continue
        result.text_offset.append(offsets.add(position.chosen.token_bytes))
        result.tokens.append(_spell(position.chosen, as_ids))
        result.token_logprobs.append(position.chosen.logprob)
        # The chosen token is always among them, as the OpenAI API does it.
        alternatives = (*position.top, position.chosen)
        result.top_logprobs.append({_spell(t, as_ids): t.logprob for t in alternatives})
    return result


def chat_logprobs(positions: Iterable[PositionLogprobs], *, as_ids: bool = False) -> ChatLogprobs:
    """The chat form of some positions. `as_ids` spells tokens as `token_id:N`."""

    def spell(token: TokenLogprob) -> str:
        return _id_label(token.token_id) if as_ids else token.token

    return ChatLogprobs(
        [
            ChatTokenLogprob(
                token=spell(position.chosen),
                logprob=position.chosen.logprob,
                bytes=list(position.chosen.token_bytes),
                top_logprobs=[
                    ChatAlternative(spell(t), t.logprob, list(t.token_bytes)) for t in position.top
                ],
            )
            for position in positions
        ]
    )


def prompt_logprobs(positions: Sequence[PositionLogprobs | None]) -> PromptLogprobs:
    """vLLM's form of the positions of a prompt."""
    return [
        None
        if position is None
        else {
            str(t.token_id): PromptTokenLogprob(t.logprob, t.token)
            for t in (*position.top, position.chosen)
        }
        for position in positions
    ]


def _id_label(token_id: int) -> str:
    return f"token_id:{token_id}"


def _spell(token: TokenLogprob, as_ids: bool) -> str:
    """A token as a key: part of a character is spelled in bytes, so that keys stay distinct."""
    if as_ids:
        return _id_label(token.token_id)
    if "\ufffd" not in token.token:
        return token.token
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.token_bytes)
