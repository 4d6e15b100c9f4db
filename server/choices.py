"""The answers to a prompt, put together from what the engine says of each."""

from collections.abc import Sequence

from dijiang_runtime.request import FinishReason, PositionLogprobs, RequestOutput
from server.protocol.sampling import GenerationRequest


class Choice:
    """One answer, as it is put together from outputs."""

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self.logprobs: list[PositionLogprobs] = []
        self.prompt_logprobs: tuple[PositionLogprobs | None, ...] | None = None
        self.finish_reason: FinishReason | None = None
        self.stop_reason: str | int | None = None
        self.embedding: bytes | None = None
        self._text: list[str] = []

    @property
    def text(self) -> str:
        return "".join(self._text)

    @property
    def mean_logprob(self) -> float:
        """Of its tokens, under the model itself; 0 if it has none."""
        values = [position.chosen.logprob for position in self.logprobs]
        return sum(values) / max(1, len(values))

    def add(self, output: RequestOutput) -> None:
        """Append what is new."""
        self._text.append(output.text)
        self.token_ids.extend(output.token_ids)
        self.logprobs.extend(output.logprobs or ())
        if output.prompt_logprobs is not None:
            self.prompt_logprobs = output.prompt_logprobs
        if output.embedding is not None:
            self.embedding = output.embedding
        if output.finish_reason is not None:
            self.finish_reason, self.stop_reason = output.finish_reason, output.stop_reason


def best_choices(choices: Sequence[Choice], body: GenerationRequest) -> list[Choice]:
    """The likeliest `n` of the `num_sequences` answers to each prompt, the likeliest first.

    Where no choice is to be made, they stay in the order of their seeds.
    """
    if body.num_sequences == body.num_choices:
        return list(choices)
    best: list[Choice] = []
    for start in range(0, len(choices), body.num_sequences):
        answers = choices[start : start + body.num_sequences]
        ranked = sorted(answers, key=lambda choice: choice.mean_logprob, reverse=True)
        best += ranked[: body.num_choices]
    return best
