"""What is asked and what is answered, as values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict


class Sampling(TypedDict, total=False):
    """Sampling parameters as the API spells them; what is left out keeps the server's default.

    Those from `top_k` on are no part of OpenAI's API; vLLM knows most of them.
    """

    max_tokens: int
    temperature: float
    top_p: float
    frequency_penalty: float
    presence_penalty: float
    logit_bias: Mapping[str, float]
    seed: int
    stop: str | Sequence[str]
    n: int
    top_k: int
    min_p: float
    repetition_penalty: float
    min_tokens: int
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    priority: int
    timeout: float


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Choice:
    """One finished answer."""

    index: int
    text: str
    finish_reason: str | None


@dataclass(frozen=True, slots=True)
class Answer:
    """The response to a request that was not streamed."""

    id: str
    model: str
    choices: tuple[Choice, ...]
    usage: Usage | None

    @property
    def text(self) -> str:
        """The text of the first choice."""
        return self.choices[0].text


@dataclass(frozen=True, slots=True)
class Delta:
    """What one event of a stream adds to one choice. `usage` comes alone, as a rule at the end."""

    index: int = 0
    text: str = ""
    finish_reason: str | None = None
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class Model:
    """A model that the server lists. Not every server tells how long its context is."""

    id: str
    max_model_len: int | None = None


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of a text, and how many the model has room for."""

    ids: tuple[int, ...]
    max_model_len: int | None = None
