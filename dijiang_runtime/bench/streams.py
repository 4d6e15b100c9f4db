"""The engine's own speed at many streams, without sockets: what a server can at best reach.

A stream's steady part is what counts, on both sides: from the moment at which all streams have
begun to that at which the first one ends.
"""

import itertools
import time
from collections.abc import Sequence

from dijiang_runtime.engine.engine import Engine
from dijiang_runtime.request import Request, SamplingParams

Times = Sequence[float]
"""When the tokens of one stream came, in seconds."""


class EngineAlone:
    """Runs greedy requests of one length through an engine in this process."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._ids = itertools.count()

    def run(self, prompt: Sequence[int], num_streams: int, num_tokens: int) -> list[list[float]]:
        """The times of every token of every stream."""
        sampling = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
        times: dict[str, list[float]] = {}
        for _ in range(num_streams):
            request = Request(
                request_id=f"bench-{next(self._ids)}",
                prompt_token_ids=tuple(prompt),
                sampling=sampling,
                arrival_time=time.time(),
            )
            self._engine.add_request(request)
            times[request.request_id] = []
        while self._engine.has_work:
            outputs = self._engine.step()
            now = time.perf_counter()
            for output in outputs:
                times[output.request_id] += [now] * len(output.token_ids)
        return list(times.values())


def steady_speed(streams: Sequence[Times], num_tokens: int) -> float:
    """Tokens per second while all streams run, each of which had so many tokens in all.

    An event may stand for several of them: a character can take more than one.
    """
    start = max(times[0] for times in streams)
    end = min(times[-1] for times in streams)
    num_steady = sum(
        num_tokens / len(times) * sum(start < at <= end for at in times) for times in streams
    )
    return num_steady / (end - start)


def steady_gaps(streams: Sequence[Times]) -> list[float]:
    """Seconds between consecutive tokens of a stream while all streams run, all pooled."""
    start = max(times[0] for times in streams)
    end = min(times[-1] for times in streams)
    return [
        later - earlier
        for times in streams
        for earlier, later in itertools.pairwise(times)
        if earlier >= start and later <= end
    ]
