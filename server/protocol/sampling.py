"""The fields that completions and chat share, and how they become `SamplingParams`."""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
from pydantic import Field

from dijiang_runtime.errors import InvalidRequestError
from dijiang_runtime.request import MAX_BAD_WORDS, NO_LOGPROBS, Grammar, SamplingParams
from server.protocol.common import RequestModel
from server.protocol.structure import StructureFields

ShortList = Field(max_length=1024, fail_fast=True)
FailFast = Field(fail_fast=True)

MAX_TIMEOUT_SECONDS = 86_400.0
CACHE_SALT = r"[^@/\\\x00]{1,128}"
"""What a `cache_salt` may be, as in vLLM."""

_CACHE_SALT = re.compile(CACHE_SALT)


class StreamOptions(RequestModel):
    """Options of a streamed answer."""

    include_usage: bool | None = None
    """Send one more chunk, the last, with the usage of the whole request."""
    continuous_usage_stats: bool | None = None
    """With `include_usage`: send the usage so far with every chunk."""


class SamplingDefaults(msgspec.Struct, frozen=True, kw_only=True):
    """The model's own defaults, from its `generation_config.json`; the request overrides them."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


class EngineRequest(RequestModel):
    """What every request that the engine runs may say."""

    model: str | None = None
    """Left out: the model that is served."""
    truncate_prompt_tokens: int | None = None
    """Keep this many tokens of a longer prompt; -1 keeps what fits beside `max_tokens`."""
    truncation_side: Literal["left", "right"] | None = None
    """Where such a prompt is cut. Default: at its start."""
    priority: int | None = None
    timeout: float | None = None
    """Seconds after which an answer that is not complete ends with an error."""
    cache_salt: str | None = None
    """Requests with other salts share no cached prompt. None is kept from one request to the next,
    so there is nothing to keep apart."""
    user: str | None = None
    """Who asks. The access log has a hash of it; it has no other effect."""

    @property
    def num_choices(self) -> int:
        """Answers to each prompt."""
        return 1

    @property
    def num_sequences(self) -> int:
        """Sequences to run for each prompt."""
        return self.num_choices

    def check(self, *, max_choices: int) -> None:
        """Raise `InvalidRequestError` for what can be told without the model."""
        limit = self.truncate_prompt_tokens
        if limit is not None and (limit < -1 or limit == 0):
            raise InvalidRequestError(
                "truncate_prompt_tokens must be -1 or at least 1.", param="truncate_prompt_tokens"
            )
        if self.timeout is not None and not 0 < self.timeout <= MAX_TIMEOUT_SECONDS:
            raise InvalidRequestError(
                f"timeout must be above 0 and at most {MAX_TIMEOUT_SECONDS:.0f} seconds.",
                param="timeout",
            )
        if self.priority is not None and not -(2**31) <= self.priority < 2**31:
            raise InvalidRequestError("priority must be a signed 32-bit integer.", param="priority")
        if self.cache_salt is not None and not _CACHE_SALT.fullmatch(self.cache_salt):
            raise InvalidRequestError(
                "cache_salt must be 1 to 128 characters, without @, / and \\, and without NUL.",
                param="cache_salt",
            )

    def truncate(
        self, token_ids: Sequence[int], *, max_model_len: int, max_tokens: int
    ) -> Sequence[int]:
        """The tokens of a prompt that are kept, beside an answer of `max_tokens`."""
        limit = self.truncate_prompt_tokens
        if limit == -1:
            limit = max(1, max_model_len - max_tokens)
        if limit is None or len(token_ids) <= limit:
            return token_ids
        return token_ids[:limit] if self.truncation_side == "right" else token_ids[-limit:]


class GenerationRequest(StructureFields, EngineRequest):
    """What every request for text may say. A field that is null is as if it were not there."""

    n: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stream_interval: int | None = None
    """Tokens of an event after the first, which comes at once. Default: 1."""
    max_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: Annotated[list[int], FailFast] | None = None
    bad_words: Annotated[list[str], Field(max_length=MAX_BAD_WORDS, fail_fast=True)] | None = None
    seed: int | None = None
    stop: str | Annotated[list[str], ShortList] | None = None
    stop_token_ids: Annotated[list[int], ShortList] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    prompt_logprobs: int | None = None
    return_token_ids: bool | None = None
    """Put the ids of the prompt's and the answer's tokens into the response."""
    return_tokens_as_token_ids: bool | None = None
    """Spell the tokens of logprobs as `token_id:N`."""

    @property
    def num_choices(self) -> int:
        return 1 if self.n is None else self.n

    def ignored_fields(self) -> list[str]:
        nested = self.stream_options.ignored_fields() if self.stream_options else []
        return super().ignored_fields() + [f"stream_options.{name}" for name in nested]

    @property
    def wants_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def wants_continuous_usage(self) -> bool:
        options = self.stream_options
        return bool(options and options.include_usage and options.continuous_usage_stats)

    @property
    def num_logprobs(self) -> int:
        """Alternatives wanted for each output token, or `NO_LOGPROBS`."""
        raise NotImplementedError

    @property
    def aliases(self) -> Mapping[str, str]:
        """Fields of `SamplingParams` that the client spelled differently."""
        return {}

    def check(self, *, max_choices: int) -> None:
        """Raise `InvalidRequestError` for what can be told without the model."""
        super().check(max_choices=max_choices)
        if not 1 <= self.num_choices <= max_choices:
            raise InvalidRequestError(f"n must be between 1 and {max_choices}.", param="n")
        if self.stream_options is not None and not self.stream:
            raise InvalidRequestError(
                "stream_options is only allowed when stream is true.", param="stream_options"
            )
        if self.stream_interval is not None and self.stream_interval < 1:
            raise InvalidRequestError(
                "stream_interval must be at least 1.", param="stream_interval"
            )
        if self.prompt_logprobs is not None:
            if self.prompt_logprobs < 0:
                raise InvalidRequestError(
                    "prompt_logprobs must be at least 0.", param="prompt_logprobs"
                )
            if self.stream:
                raise InvalidRequestError(
                    "prompt_logprobs is not available with stream.", param="prompt_logprobs"
                )

    def to_sampling_params(
        self,
        defaults: SamplingDefaults,
        *,
        max_tokens: int,
        prompt_logprobs: int = NO_LOGPROBS,
        bad_words: tuple[tuple[int, ...], ...] = (),
        grammar: Grammar | None = None,
        shown_token_ids: tuple[int, ...] = (),
    ) -> SamplingParams:
        """The sampling parameters of the first choice."""
        given: dict[str, Any] = {
            name: value for name in _COPIED_FIELDS if (value := getattr(self, name)) is not None
        }
        stop = [self.stop] if isinstance(self.stop, str) else self.stop
        allowed = self.allowed_token_ids
        # Answers are ranked by their logprobs.
        is_ranked = self.num_sequences > self.num_choices
        return SamplingParams(
            **{**msgspec.structs.asdict(defaults), **given},
            max_tokens=max_tokens,
            stop=tuple(stop or ()),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            allowed_token_ids=None if allowed is None else tuple(sorted(set(allowed))),
            bad_words=bad_words,
            grammar=grammar,
            shown_token_ids=shown_token_ids,
            logprobs=max(self.num_logprobs, 0) if is_ranked else self.num_logprobs,
            prompt_logprobs=prompt_logprobs,
        )

    def validate_sampling(
        self, sampling: SamplingParams, *, vocab_size: int, max_logprobs: int
    ) -> None:
        """Raise `InvalidRequestError`, naming the field as the client spelled it."""
        try:
            sampling.validate(vocab_size, max_logprobs=max_logprobs)
        except InvalidRequestError as exc:
            name = exc.param or ""
            spelled = self.aliases.get(name, name)
            raise InvalidRequestError(
                str(exc).replace(name, spelled, 1), param=spelled or None
            ) from None


def seed_of_choice(seed: int | None, choice: int) -> int | None:
    """Choice i of a request with seed s has seed s + i, within 64 bits."""
    if seed is None:
        return None
    return (seed + choice + 2**63) % 2**64 - 2**63


_COPIED_FIELDS = (
    "min_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
    "logit_bias",
    "seed",
    "include_stop_str_in_output",
    "ignore_eos",
)
