"""What is remembered of each request. All times are seconds since the run began."""

from array import array
from dataclasses import dataclass, field


@dataclass(slots=True)
class RequestRecord:
    """One request, from the moment it should have been sent.

    Args:
        intended: When the plan wanted it sent. In a closed loop that is when it was sent.
        sent: When its first byte was written.
        ended: When nothing more was expected of it.
        last_token: The last event with text or a finish reason.
        token_times: Of every event that held text.
        output_tokens: As `usage` counts them; -1 where the server reports none.
        error: None for a complete answer, else the kind of failure.
    """

    conversation: int
    turn: int
    max_tokens: int
    intended: float
    sent: float = 0.0
    ended: float = 0.0
    last_token: float = 0.0
    token_times: "array[float]" = field(default_factory=lambda: array("d"))
    prompt_tokens: int = -1
    cached_tokens: int = -1
    output_tokens: int = -1
    finish_reason: str | None = None
    error: str | None = None
    error_message: str = ""

    @property
    def first_token(self) -> float:
        """When the first text came. An answer without text begins where it ends."""
        return self.token_times[0] if self.token_times else self.last_token

    @property
    def num_output_tokens(self) -> int:
        """Output tokens; events with text stand for them where the server does not count."""
        return self.output_tokens if self.output_tokens >= 0 else len(self.token_times)


class Recorder:
    """The requests of one run, and running totals for whoever watches."""

    def __init__(self) -> None:
        self.records: list[RequestRecord] = []
        self.num_running = 0
        self.num_completed = 0
        self.num_failed = 0
        self.num_events = 0

    def begin(self, record: RequestRecord) -> None:
        self.records.append(record)
        self.num_running += 1

    def end(self, record: RequestRecord, now: float) -> None:
        record.ended = now
        self.num_running -= 1
        if record.error is None:
            self.num_completed += 1
        else:
            self.num_failed += 1

    def errors(self) -> dict[str, int]:
        """How many requests failed, by kind."""
        counts: dict[str, int] = {}
        for record in self.records:
            if record.error is not None:
                counts[record.error] = counts.get(record.error, 0) + 1
        return counts
