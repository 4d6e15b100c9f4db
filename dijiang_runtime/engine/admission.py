"""Who may wait for a slot: the bound on the queue, and when to come back. Knows no torch.

The client checks a request before it is sent, so that a surplus is refused at once; the scheduler
checks again, so that the engine's memory is bounded whoever talks to it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dijiang_runtime.errors import ContextLengthError, EngineOverloadedError, InvalidRequestError
from dijiang_runtime.request import NO_LOGPROBS, Request

MIN_RETRY_SECONDS = 1.0
MAX_RETRY_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """How much may wait while all slots are taken."""

    max_requests: int
    max_tokens: int
    """Prompt tokens, beside those of the longest prompt in the queue."""

    def fits(self, queued: list[int]) -> bool:
        """Whether prompts of these lengths may wait together."""
        num_tokens = sum(queued) - max(queued, default=0)
        return len(queued) <= self.max_requests and num_tokens <= self.max_tokens

    def surely_fits(self, num_queued: int, num_tokens: int) -> bool:
        """Whether any prompt may wait with so many, of at most so many tokens together.

        What is true here is true of `fits`, and takes no look at the queue. False says nothing.
        """
        return num_queued < self.max_requests and num_tokens <= self.max_tokens


class AdmissionRate:
    """The recent mean time between two admissions while requests were waiting."""

    def __init__(self) -> None:
        self.seconds = MIN_RETRY_SECONDS
        self._last: float | None = None

    def observe(self, now: float, *, saturated: bool) -> None:
        """Note that a request left its slot at `now`. Pauses count only while others waited."""
        if self._last is not None and saturated:
            self.seconds += 0.2 * (now - self._last - self.seconds)
        self._last = now if saturated else None


def check_queue(
    queued: Iterable[int], num_prompt_tokens: int, limits: QueueLimits, rate: AdmissionRate
) -> None:
    """Let one more prompt wait with prompts of the lengths `queued`, in order, or raise.

    Raises:
        EngineOverloadedError: with the time after which enough of the queue will have left.
    """
    lengths = [*queued, num_prompt_tokens]
    if limits.fits(lengths):
        return
    seconds = (len(lengths) - _num_fitting(lengths, limits)) * rate.seconds
    raise EngineOverloadedError(
        f"{len(lengths) - 1} requests are waiting already. Try again later.",
        retry_after_seconds=min(max(seconds, MIN_RETRY_SECONDS), MAX_RETRY_SECONDS),
    )


def _num_fitting(lengths: Sequence[int], limits: QueueLimits) -> int:
    """How many of the last may wait together: those before them must have left by then."""
    total = longest = 0
    for count, length in enumerate(reversed(lengths)):
        total, longest = total + length, max(longest, length)
        if count >= limits.max_requests or total - longest > limits.max_tokens:
            return count
    return len(lengths)


def validate_request(
    request: Request, *, vocab_size: int, max_model_len: int, max_logprobs: int
) -> None:
    """Raise `InvalidRequestError`, naming the parameter, unless the engine can run `request`."""
    request.validate(vocab_size, max_logprobs=max_logprobs)
    sampling = request.sampling
    num_prompt_tokens = len(request.prompt_token_ids)
    if num_prompt_tokens + sampling.max_tokens > max_model_len:
        raise ContextLengthError(num_prompt_tokens, sampling.max_tokens, max_model_len)
    has_aim = request.embed or sampling.prompt_logprobs != NO_LOGPROBS
    if sampling.max_tokens == 0 and not has_aim:
        raise InvalidRequestError(
            "max_tokens must be at least 1 unless the prompt's logprobs are asked for.",
            param="max_tokens",
        )
