"""Log probabilities, in the forms that the OpenAI API has for them, and vLLM's for prompts."""

from collections.abc import Iterable, Sequence

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


def completion_logprobs(
    positions: Iterable[PositionLogprobs | None],
    first_token: str = "",
    text_offset: int = 0,
) -> CompletionLogprobs:
    """The legacy form of some positions.

    Args:
        positions: None stands for the first token of a prompt, which nothing predicts.
        first_token: How that token is spelled.
        text_offset: Where in the answer the first of the tokens begins, in characters.
    """
    result = CompletionLogprobs([], [], [], [])
    for position in positions:
        token = first_token if position is None else _spell(position.chosen)
        result.tokens.append(token)
        result.text_offset.append(text_offset)
        text_offset += len(token if position is None else position.chosen.token)
        if position is None:
            result.token_logprobs.append(None)
            result.top_logprobs.append(None)
            continue
        result.token_logprobs.append(position.chosen.logprob)
        # The chosen token is always among them, as the OpenAI API does it.
        alternatives = (*position.top, position.chosen)
        result.top_logprobs.append({_spell(t): t.logprob for t in alternatives})
    return result


def chat_logprobs(positions: Iterable[PositionLogprobs]) -> ChatLogprobs:
    """The chat form of some positions."""
    return ChatLogprobs(
        [
            ChatTokenLogprob(
                token=position.chosen.token,
                logprob=position.chosen.logprob,
                bytes=list(position.chosen.token_bytes),
                top_logprobs=[
                    ChatAlternative(t.token, t.logprob, list(t.token_bytes)) for t in position.top
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


def _spell(token: TokenLogprob) -> str:
    """A token as a key: part of a character is spelled in bytes, so that keys stay distinct."""
    if "\ufffd" not in token.token:
        return token.token
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.token_bytes)
