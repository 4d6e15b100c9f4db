"""Runs load tests: finds out about the servers, then applies load after load."""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import Any

from clients.client import Client
from clients.loadtest.arrivals import parse_arrivals
from clients.loadtest.connections import open_pool, parse_address
from clients.loadtest.generator import Generator
from clients.loadtest.monitor import Monitor, undisturbed
from clients.loadtest.options import Load, LoadOptions, ServerOptions
from clients.loadtest.records import Recorder
from clients.loadtest.report import new_report
from clients.loadtest.results import run_result
from clients.loadtest.sender import RequestBuilder, Sender
from clients.loadtest.text import TokenScale, common_words, measure_scale, read_text
from clients.loadtest.workloads import Workload
from clients.messages import Message

WATCH_SECONDS = 0.5

CONVERSATIONS_PER_RUN = 1_000_000
"""Each load has conversations of its own: a server must not know them from the load before."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is, for a display."""

    title: str
    elapsed_seconds: float
    total_seconds: float
    num_total: int | None
    num_running: int
    num_completed: int
    num_failed: int
    events_per_second: float


Watcher = Callable[[Progress], None]
LoopFactory = Callable[[], asyncio.AbstractEventLoop]


def run(
    servers: Sequence[ServerOptions],
    options: LoadOptions,
    *,
    watch: Watcher = lambda progress: None,
    loop_factory: LoopFactory | None = None,
) -> dict[str, Any]:
    """Test the servers and return the report.

    Several servers take turns at each load, so that a change of the machine's mood meets both, and
    they are sent the same texts. Ctrl-C ends the test early, with a report on what was measured.

    Args:
        loop_factory: Makes the event loop; a faster one raises the load tester's own ceiling.

    Raises:
        ClientError: a server does not answer, or is no OpenAI-compatible one.
        OptionError: the options make no sense.
    """
    words = common_words() if options.text is None else read_text(options.text)
    # Checks the lengths before anything is sent.
    Workload(options.workload, words, TokenScale(), options.seed)
    models = []
    scale = TokenScale()
    for server in servers:
        address = parse_address(server.base_url)
        with Client(address.url, api_key=server.api_key, model=server.model) as client:
            models.append(client.model_name())
            if server is servers[0]:
                scale = measure_scale(lambda text: count_tokens(client, options, text), words)
    workload = Workload(options.workload, words, scale, options.seed)
    report = new_report(servers, models, options, scale)
    with asyncio.Runner(loop_factory=loop_factory) as runner, undisturbed():
        for number, load in enumerate(options.loads):
            for server, model, shown in zip(servers, models, report["servers"], strict=True):
                one = _Run(server, model, load, number, options, workload, watch)
                shown["runs"].append(runner.run(one.run()))
                if one.is_interrupted:
                    report["is_interrupted"] = True
                    return report
    return report


def count_tokens(client: Client, options: LoadOptions, text: str) -> int | None:
    """How many tokens a prompt of this text has, as the server's usage says."""
    if options.endpoint == "chat":
        answer = client.chat([Message("user", text)], max_tokens=1)
    else:
        answer = client.complete(text, max_tokens=1)
    return answer.usage.prompt_tokens if answer.usage else None


class _Run:
    """One load on one server."""

    def __init__(
        self,
        server: ServerOptions,
        model: str,
        load: Load,
        number: int,
        options: LoadOptions,
        workload: Workload,
        watch: Watcher,
    ) -> None:
        self.is_interrupted = False
        self._server, self._model, self._load, self._number = server, model, load, number
        self._options, self._workload, self._watch = options, workload, watch
        self._address = parse_address(server.base_url)
        self._recorder = Recorder()
        self._start = 0.0

    def _clock(self) -> float:
        return time.perf_counter() - self._start

    async def run(self) -> dict[str, Any]:
        """Apply the load, and return what came of it."""
        options, span = self._options, self._options.span
        pool = await open_pool(self._address, self._clock)
        sender = Sender(
            pool,
            self._recorder,
            timeout_seconds=options.timeout_seconds,
            keep_text=options.workload.turns != "1",
        )
        builder = RequestBuilder(
            self._address, options.endpoint, self._model, options.extra, self._server.api_key
        )
        self._start = time.perf_counter()
        generator = Generator(
            self._workload,
            builder,
            sender,
            span,
            self._clock,
            options.max_concurrency,
            self._number * CONVERSATIONS_PER_RUN,
        )
        monitor = Monitor(self._clock)
        with _background(monitor.watch()), _background(self._show()):
            try:
                await self._apply(generator)
            except asyncio.CancelledError:
                self.is_interrupted = True
        pool.close()
        now = self._clock()
        records = self._recorder.records
        return run_result(self._load, records, span, options.targets, monitor, now)

    async def _apply(self, generator: Generator) -> None:
        if self._load.kind == "concurrency":
            await generator.closed_loop(int(self._load.value))
            return
        arrivals = parse_arrivals(self._options.arrivals)
        rng = Random(f"{self._options.seed} arrivals")
        await generator.open_loop(arrivals.offsets(self._load.value, self._options.span.end, rng))

    async def _show(self) -> None:
        span, recorder = self._options.span, self._recorder
        title = f"{self._address.authority}, {self._load.label}"
        before, num_before = self._clock(), 0
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            now, num_events = self._clock(), recorder.num_events
            self._watch(
                Progress(
                    title,
                    now,
                    span.end,
                    span.num_requests,
                    recorder.num_running,
                    recorder.num_completed,
                    recorder.num_failed,
                    (num_events - num_before) / (now - before),
                )
            )
            before, num_before = now, num_events


@contextmanager
def _background(coroutine: Any) -> Iterator[None]:
    task = asyncio.ensure_future(coroutine)
    try:
        yield
    finally:
        task.cancel()
