"""`/v1/completions`."""

from collections.abc import Sequence
from typing import Annotated, Literal, cast

import msgspec

from dijiang_runtime.errors import InvalidRequestError
from dijiang_runtime.request import NO_LOGPROBS, FinishReason
from server.protocol.common import MaybeUsage
from server.protocol.logprobs import CompletionLogprobs, PromptLogprobs
from server.protocol.sampling import FailFast, GenerationRequest

DEFAULT_MAX_TOKENS = 16
"""As in the OpenAI API."""

TokenIds = Annotated[list[int], FailFast]


Prompts = str | Annotated[list[str], FailFast] | TokenIds | Annotated[list[TokenIds], FailFast]


def list_prompts(given: Prompts, param: str) -> list[str] | list[list[int]]:
    """The prompts in any of their forms, as a list of which none is empty."""
    prompts: list[str] | list[list[int]]
    if isinstance(given, str):
        prompts = [given]
    elif given and isinstance(given[0], int):
        prompts = [given]
    else:
        prompts = cast(list[str] | list[list[int]], given)
    if not prompts or not all(prompts):
        raise InvalidRequestError(f"{param} must not be empty.", param=param)
    return prompts


class CompletionRequest(GenerationRequest):
    """Continue one or several prompts."""

    prompt: Prompts
    echo: bool | None = None
    """Put the prompt before the answer."""
    logprobs: int | None = None
    best_of: int | None = None
    """Make this many answers to each prompt, and return the likeliest."""
    add_special_tokens: bool | None = None
    """Put BOS and the like where the model expects them. Default: true."""

    @property
    def num_logprobs(self) -> int:
        return NO_LOGPROBS if self.logprobs is None else self.logprobs

    @property
    def num_sequences(self) -> int:
        return self.num_choices if self.best_of is None else self.best_of

    def check(self, *, max_choices: int) -> None:
        super().check(max_choices=max_choices)
        if not self.num_choices <= self.num_sequences <= max_choices:
            raise InvalidRequestError(
                f"best_of must be between n and {max_choices}.", param="best_of"
            )
        if self.stream and self.num_sequences > self.num_choices:
            raise InvalidRequestError(
                "best_of above n is not available with stream.", param="best_of"
            )
        if self.logprobs is not None and self.logprobs < 0:
            raise InvalidRequestError("logprobs must be at least 0.", param="logprobs")
        if self.max_tokens is not None and self.max_tokens < (0 if self.echo else 1):
            raise InvalidRequestError(
                "max_tokens must be at least 1, or 0 with echo.", param="max_tokens"
            )

    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts, of which none is empty."""
        return list_prompts(self.prompt, "prompt")


class CompletionChoice(msgspec.Struct, frozen=True, kw_only=True):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None
    stop_reason: str | int | None = None
    """What stopped the answer: the stop string or token id; null for the end of the text."""
    prompt_logprobs: PromptLogprobs | msgspec.UnsetType = msgspec.UNSET
    prompt_token_ids: Sequence[int] | msgspec.UnsetType = msgspec.UNSET
    token_ids: Sequence[int] | msgspec.UnsetType = msgspec.UNSET


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """A whole answer, and in a stream one event of it."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: MaybeUsage = msgspec.UNSET
