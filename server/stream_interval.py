"""Streams whose events bring several tokens each."""

from dijiang_runtime.engine.merge import merge_outputs
from dijiang_runtime.request import RequestOutput
from server.errors import ErrorBody
from server.streaming import StreamEncoder


class Grouped(StreamEncoder):
    """Another encoder's stream, in which the events of a choice bring `interval` tokens.

    The first token comes at once and the last with what is left, as in vLLM.
    """

    def __init__(self, encoder: StreamEncoder, interval: int) -> None:
        self._encoder = encoder
        self._interval = interval
        self._held: dict[int, list[RequestOutput]] = {}

    def opening(self) -> bytes:
        return self._encoder.opening()

    def chunk(self, index: int, output: RequestOutput) -> bytes:
        """The events of a group that is complete, or nothing."""
        is_first = index not in self._held
        held = self._held.setdefault(index, [])
        held.append(output)
        num_tokens = sum(len(part.token_ids) for part in held)
        if not (is_first or output.finished or num_tokens >= self._interval):
            return b""
        self._held[index] = []
        return self._encoder.chunk(index, merge_outputs(held))

    def closing(self) -> bytes:
        return self._encoder.closing()

    def failure(self, error: ErrorBody) -> bytes:
        return self._encoder.failure(error)


def grouped(encoder: StreamEncoder, interval: int | None) -> StreamEncoder:
    """The encoder, with `interval` tokens in an event; None is as they come."""
    return encoder if interval in (None, 1) else Grouped(encoder, interval or 1)
