"""`/tokenize` and `/detokenize`, in vLLM's form."""

from collections.abc import Sequence
from typing import Annotated

import msgspec

from dijiang_runtime.errors import InvalidRequestError
from server.errors import UnsupportedParameterError
from server.protocol.chat import Messages, TemplateFields
from server.protocol.common import RequestModel
from server.protocol.sampling import FailFast


class TokenizeRequest(TemplateFields):
    """Tell the tokens of a text, or of the prompt that a conversation becomes."""

    model: str | None = None
    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = None
    """Default: true for a text; a chat template spells its own."""
    return_token_strs: bool | None = None

    def check(self) -> None:
        """Raise `InvalidRequestError` unless it is one of the two forms."""
        if (self.prompt is None) == (self.messages is None):
            raise InvalidRequestError("Send either prompt or messages.", param="prompt")
        if self.messages is not None and self.add_special_tokens:
            raise UnsupportedParameterError(
                "add_special_tokens is not supported with messages.", param="add_special_tokens"
            )


class TokenizeResponse(msgspec.Struct, frozen=True, kw_only=True):
    count: int
    max_model_len: int
    tokens: Sequence[int]
    token_strs: list[str] | None = None
    """As the vocabulary spells them."""


class DetokenizeRequest(RequestModel):
    """Tell the text of some tokens."""

    model: str | None = None
    tokens: Annotated[list[int], FailFast]


class DetokenizeResponse(msgspec.Struct, frozen=True, kw_only=True):
    prompt: str
