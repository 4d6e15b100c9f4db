"""What crosses the boundary between the API process and the engine: values, all frozen.

They are `msgspec` structs, so that the same definitions are the wire format: msgpack over a local
ZeroMQ socket, never pickle.
"""

from collections.abc import Iterable
from enum import StrEnum

import msgspec

from dijiang_runtime.errors import InvalidRequestError

GREEDY_TEMPERATURE = 1e-5
"""Temperatures below this choose the most likely token."""

NO_LOGPROBS = -1
"""`SamplingParams.logprobs` when none are wanted. 0 asks for the chosen token's alone."""


MAX_BAD_WORDS = 128
"""Each spelling of a word counts."""


JSON_WHITE_SPACE = r" |\n[ ]{0,16}"
"""What may stand where JSON allows white space, in answers that a schema holds: enough for compact
and for indented JSON, and no model can go on with it for ever."""


class FinishReason(StrEnum):
    """Why a sequence ended. `ABORT` and `ERROR` never reach an OpenAI response body."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


class GrammarKind(StrEnum):
    """How the text of a `Grammar` is written."""

    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    CHOICE = "choice"
    """A JSON list of the strings that the answer may be."""
    GRAMMAR = "grammar"
    """GBNF, as llama.cpp has it, or Lark."""
    LARK = "lark"


class Grammar(msgspec.Struct, frozen=True):
    """What the whole text of an answer must match."""

    kind: GrammarKind
    text: str
    param: str = "structured_outputs"
    """The field of the client that asked for it."""


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the tokens of one answer are chosen.

    Bounds are those of the OpenAI API where it has them, vLLM's elsewhere; `validate` enforces
    them. Penalties other than `repetition_penalty` look at output tokens only.
    """

    max_tokens: int = 16
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """Keep this many most likely tokens. 0 or -1 keeps all."""
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    allowed_token_ids: tuple[int, ...] | None = None
    """No other token is ever chosen, EOS included; None allows all."""
    bad_words: tuple[tuple[int, ...], ...] = ()
    """Sequences of tokens that the output never contains."""
    grammar: Grammar | None = None
    """What the answer matches when its finish reason is `stop`; a prefix of that otherwise."""
    seed: int | None = None
    """With a seed the answer is a function of the request alone. None draws one at random."""
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    shown_token_ids: tuple[int, ...] = ()
    """Special tokens whose spelling is part of the text; the others have none."""
    ignore_eos: bool = False
    logprobs: int = NO_LOGPROBS
    """How many alternatives to report for each output token beside the chosen one."""
    prompt_logprobs: int = NO_LOGPROBS
    """The same for the prompt's tokens; the first token of a prompt has none."""

    @property
    def is_greedy(self) -> bool:
        return self.temperature < GREEDY_TEMPERATURE

    @property
    def has_bias(self) -> bool:
        """Whether there are biases, or tokens that may be suppressed."""
        return bool(self.logit_bias or self.bad_words or self.min_tokens)

    @property
    def has_penalties(self) -> bool:
        return (
            self.repetition_penalty != 1.0
            or self.frequency_penalty != 0.0
            or self.presence_penalty != 0.0
        )

    def validate(self, vocab_size: int, *, max_logprobs: int = 20) -> None:
        """Raise `InvalidRequestError`, naming the parameter, unless every field is in bounds."""
        self._validate_lengths(max_logprobs)
        self._validate_distribution()
        self._validate_tokens(vocab_size)
        self._validate_stops(vocab_size)

    def _validate_lengths(self, max_logprobs: int) -> None:
        _check(self.max_tokens >= 0, "max_tokens", "at least 0")
        _check(0 <= self.min_tokens <= self.max_tokens, "min_tokens", "between 0 and max_tokens")
        for name in ("logprobs", "prompt_logprobs"):
            _check(
                NO_LOGPROBS <= getattr(self, name) <= max_logprobs,
                name,
                f"between 0 and {max_logprobs}",
            )

    def _validate_distribution(self) -> None:
        # A comparison with NaN is false, so NaN fails every one of these.
        _check(0.0 <= self.temperature <= 2.0, "temperature", "between 0 and 2")
        _check(0.0 < self.top_p <= 1.0, "top_p", "above 0 and at most 1")
        _check(-1 <= self.top_k < 2**31, "top_k", "-1, 0, or a positive 32-bit integer")
        _check(0.0 <= self.min_p <= 1.0, "min_p", "between 0 and 1")
        _check(-2.0 <= self.frequency_penalty <= 2.0, "frequency_penalty", "between -2 and 2")
        _check(-2.0 <= self.presence_penalty <= 2.0, "presence_penalty", "between -2 and 2")
        _check(
            0.01 <= self.repetition_penalty <= 100.0,
            "repetition_penalty",
            "between 0.01 and 100",  # A smaller one is 0 in the arithmetic of the logits.
        )
        _check(
            self.seed is None or -(2**63) <= self.seed < 2**63, "seed", "a signed 64-bit integer"
        )

    def _validate_tokens(self, vocab_size: int) -> None:
        """Which tokens are likelier, allowed or banned."""
        _check(len(self.logit_bias) <= 300, "logit_bias", "at most 300 tokens")
        _check_ids(self.logit_bias, vocab_size, "logit_bias", "keyed by token ids")
        for bias in self.logit_bias.values():
            _check(-100.0 <= bias <= 100.0, "logit_bias", "between -100 and 100")
        if self.allowed_token_ids is not None:
            _check(bool(self.allowed_token_ids), "allowed_token_ids", "at least one token id")
            _check_ids(self.allowed_token_ids, vocab_size, "allowed_token_ids", "token ids")
            _check(self.grammar is None, "allowed_token_ids", "left out where a grammar decides")
        _check(len(self.bad_words) <= MAX_BAD_WORDS, "bad_words", f"at most {MAX_BAD_WORDS} words")
        for word in self.bad_words:
            _check(0 < len(word) <= 256, "bad_words", "words of 1 to 256 tokens")
            _check_ids(word, vocab_size, "bad_words", "words of token ids")

    def _validate_stops(self, vocab_size: int) -> None:
        _check(len(self.stop) <= 16, "stop", "at most 16 strings")
        for stop in self.stop:
            _check(0 < len(stop) <= 256, "stop", "strings of 1 to 256 characters")
        _check_ids(self.stop_token_ids, vocab_size, "stop_token_ids", "token ids")
        _check_ids(self.shown_token_ids, vocab_size, "shown_token_ids", "token ids")


def _check(ok: bool, param: str, rule: str) -> None:
    if not ok:
        raise InvalidRequestError(f"{param} must be {rule}.", param=param)


def _check_ids(token_ids: Iterable[int], vocab_size: int, param: str, what: str) -> None:
    for token_id in token_ids:
        if not 0 <= token_id < vocab_size:
            _check(False, param, f"{what} below {vocab_size}, not {token_id}")


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One sequence to run. A client request with `n` choices is `n` of these."""

    request_id: str
    """Unique among running requests; made by us, never taken from a client."""
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    arrival_time: float
    """`time.time()` at which the API process accepted it, in seconds."""
    priority: int = 0
    """The lowest of those that wait is admitted first; among equals, the first to come."""
    max_queue_seconds: float | None = None
    """How long after its arrival it may still wait for a slot."""
    group: str | None = None
    """Requests of one group have the same prompt. It is computed for the first of them that has a
    slot, and the others that have one by then go on from a copy of its state."""

    embed: bool = False
    """Read the prompt, and answer with its embedding instead of tokens."""

    def validate(self, vocab_size: int, *, max_logprobs: int = 20) -> None:
        """Raise `InvalidRequestError` unless the engine can run this request."""
        if not self.prompt_token_ids:
            raise InvalidRequestError("prompt must not be empty.", param="prompt")
        if not -(2**31) <= self.priority < 2**31:
            raise InvalidRequestError("priority must be a signed 32-bit integer.", param="priority")
        for token_id in self.prompt_token_ids:
            if not 0 <= token_id < vocab_size:
                raise InvalidRequestError(
                    f"prompt must hold token ids from 0 to {vocab_size - 1}, not {token_id}.",
                    param="prompt",
                )
        self.sampling.validate(vocab_size, max_logprobs=max_logprobs)
        if self.group is not None and self.sampling.prompt_logprobs != NO_LOGPROBS:
            # A copied state says nothing of how likely the prompt was.
            raise InvalidRequestError(
                "prompt_logprobs are not available in a group.", param="prompt_logprobs"
            )
        if self.embed and (self.sampling.max_tokens or self.group is not None):
            raise InvalidRequestError("An embedding has no answer.", param="max_tokens")


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """A token and its natural-log probability under the model, before any sampling parameter."""

    token_id: int
    token: str
    """The token's bytes as text; bytes that are no valid UTF-8 alone become U+FFFD."""
    token_bytes: bytes
    logprob: float
    """Never below -9999.0, so that it is always valid JSON."""


class PositionLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """The logprob of the token at one position, and of the likeliest tokens there."""

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...]
    """Most likely first; as many as the request asked for."""


class RequestError(msgspec.Struct, frozen=True, array_like=True):
    """Why a request failed: the class name in `dijiang_runtime.errors`, and its text."""

    kind: str
    message: str
    retry_after_seconds: float | None = None
    """When it may do better, where that is known."""


class RequestTimings(msgspec.Struct, frozen=True, array_like=True):
    """When a request passed each stage, as `time.time()` seconds. Sent with the final output."""

    arrival: float
    scheduled: float
    first_token: float
    finished: float


class RequestOutput(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is new for one request after one step. Text, ids and logprobs are deltas.

    The last output of a request has `finish_reason` set, and nothing follows it. Text may lag
    behind the ids: characters are held while they are incomplete UTF-8 or may begin a stop string.
    """

    request_id: str
    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[PositionLogprobs, ...] | None = None
    prompt_logprobs: tuple[PositionLogprobs | None, ...] | None = None
    """Whole, with the first output of a request that asked for them; None for the first token."""
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    """The stop string or stop token id that matched; None for EOS."""
    error: RequestError | None = None
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    """Output tokens so far, this output's included. What `usage` reports."""
    num_copied_tokens: int = 0
    """Prompt tokens that were not computed, because another choice's state was copied. Sent with
    the final output."""
    timings: RequestTimings | None = None
    embedding: bytes | None = None
    """With the last output of a request for one: float32 values, little-endian, of length 1."""

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None
