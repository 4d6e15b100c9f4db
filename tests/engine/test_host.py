"""One engine shared by several processes: real lines, and an engine that does what it is told."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from dijiang_runtime.engine.client import EngineHost, Guest, HostedEngine
from dijiang_runtime.engine.endpoint import Endpoint
from dijiang_runtime.engine.handle import EngineHandle
from dijiang_runtime.engine.host import RETRY_SECONDS
from dijiang_runtime.engine.messages import (
    Abort,
    AddRequest,
    ClientMessage,
    EngineStats,
    Hello,
    HostNews,
    StepDone,
    decode_host_message,
    encode,
)
from dijiang_runtime.engine.stream import RequestStream
from dijiang_runtime.engine.stream_table import StreamTable
from dijiang_runtime.errors import EngineDeadError, EngineOverloadedError, NumericalError
from dijiang_runtime.request import FinishReason, RequestError, RequestOutput
from tests.engine.requests import make_request
from tests.engine.test_stream import INFO

NUM_SLOTS, MAX_QUEUED = 2, 3


class ToldEngine(EngineHandle):
    """Brings outputs when it is told to. `sent` is what the engine was sent."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[ClientMessage] = []

    def begin(self) -> None:
        info = msgspec.structs.replace(
            INFO, num_slots=NUM_SLOTS, max_queued_requests=MAX_QUEUED, max_queued_tokens=10_000
        )
        self._begin(info, StreamTable(info, self.sent.append))

    def die(self) -> None:
        self._end()
        self.num_restarts += 1
        self._tell_watchers()

    def bring(self, *outputs: RequestOutput, stats: EngineStats | None = None) -> None:
        self._on_step(StepDone(outputs, stats))

    def ids(self, kind: type[AddRequest] | type[Abort]) -> list[str]:
        """The requests that were begun, or aborted."""
        return [
            m.request.request_id if isinstance(m, AddRequest) else m.request_id
            for m in self.sent
            if isinstance(m, kind) and isinstance(m, AddRequest | Abort)
        ]


def text(request_id: str, text: str, finish_reason: FinishReason | None = None) -> RequestOutput:
    return RequestOutput(
        request_id=request_id, text=text, token_ids=(7,), finish_reason=finish_reason
    )


async def until(condition: Callable[[], bool], timeout: float = 5.0) -> None:
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.002)


@asynccontextmanager
async def shared(
    num_guests: int, engine: ToldEngine
) -> AsyncIterator[tuple[list[HostedEngine], list[Guest]]]:
    """Handles on one engine that is ready, and what its host has of each."""
    engine.begin()
    host = EngineHost(engine)
    guests = [host.open() for _ in range(num_guests)]
    handles = [HostedEngine(guest.address) for guest in guests]
    for handle in handles:
        await handle.start()
    try:
        yield handles, guests
    finally:
        for handle in handles:
            await handle.stop()
        for guest in guests:
            if guest in host.guests:
                await guest.close()


async def admit(handle: HostedEngine, request_id: str) -> RequestStream:
    stream = handle.generate(make_request(request_id))
    await stream.admitted()
    return stream


async def test_each_guest_gets_the_outputs_of_its_own_requests() -> None:
    engine = ToldEngine()
    async with shared(3, engine) as (handles, guests):
        streams = [await admit(handle, f"r{i}") for i, handle in enumerate(handles)]
        engine.bring(*(text(f"r{i}", f"text of {i}") for i in range(3)))
        engine.bring(*(text(f"r{i}", ".", FinishReason.STOP) for i in range(3)))

        for i, stream in enumerate(streams):
            assert "".join([output.text async for output in stream]) == f"text of {i}."
        assert [guest.num_finished for guest in guests] == [1, 1, 1]


async def test_what_one_step_brings_for_a_guest_is_one_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = ToldEngine()
    async with shared(1, engine) as ([handle], _):
        streams = [await admit(handle, f"r{i}") for i in range(4)]
        sent: list[bytes] = []
        send = Endpoint.send
        monkeypatch.setattr(
            Endpoint, "send", lambda self, data: sent.append(data) or send(self, data)
        )
        engine.bring(*(text(f"r{i}", "x") for i in range(4)))
        for stream in streams:
            assert (await anext(stream)).text == "x"
        assert len(sent) == 1


async def test_the_queue_is_bounded_for_all_guests_together() -> None:
    engine = ToldEngine()
    async with shared(2, engine) as (handles, _):
        for i in range(NUM_SLOTS + MAX_QUEUED):
            await admit(handles[i % 2], f"r{i}")

        surplus = handles[0].generate(make_request("surplus"))
        with pytest.raises(EngineOverloadedError, match="waiting already") as refused:
            await surplus.admitted()

        assert refused.value.retry_after_seconds >= 1
        assert "surplus" not in engine.ids(AddRequest)
        # The place that comes free is anybody's.
        engine.bring(text("r1", "", FinishReason.STOP))
        await admit(handles[0], "next")


async def test_the_time_to_come_back_after_is_the_hosts() -> None:
    engine = ToldEngine()
    async with shared(2, engine) as ([handle, others], _):
        engine._streams._rate.seconds = 9.0  # type: ignore[union-attr]
        for i in range(NUM_SLOTS + MAX_QUEUED):
            await admit(handle, f"r{i}")
        with pytest.raises(EngineOverloadedError) as refused:
            await admit(others, "surplus")
        assert refused.value.retry_after_seconds == 9.0


async def test_a_guest_that_is_gone_frees_its_slots_and_no_others() -> None:
    engine = ToldEngine()
    async with shared(2, engine) as (handles, guests):
        kept = await admit(handles[0], "kept")
        await admit(handles[1], "lost")

        await guests[1].close()

        assert engine.ids(Abort) == ["lost"]
        engine.bring(text("lost", "", FinishReason.ABORT), text("kept", "on", FinishReason.STOP))
        assert (await anext(kept)).text == "on"


async def test_a_stream_that_is_left_is_aborted_in_the_engine() -> None:
    engine = ToldEngine()
    async with shared(1, engine) as ([handle], [guest]):
        with await admit(handle, "left"):
            pass
        await until(lambda: engine.ids(Abort) == ["left"])
        await until(lambda: guest.num_running == 0)


async def test_an_error_keeps_its_kind_on_the_way() -> None:
    engine = ToldEngine()
    async with shared(1, engine) as ([handle], _):
        stream = await admit(handle, "bad")
        error = RequestError(NumericalError.__name__, "not finite")
        failed = RequestOutput(request_id="bad", finish_reason=FinishReason.ERROR, error=error)
        engine.bring(text("bad", "begun"))
        engine.bring(failed)
        assert (await anext(stream)).text == "begun"
        with pytest.raises(NumericalError):
            await anext(stream)


async def test_when_the_engine_dies_every_guest_is_told_and_none_hangs() -> None:
    engine = ToldEngine()
    async with shared(2, engine) as (handles, _):
        streams = [await admit(handle, f"r{i}") for i, handle in enumerate(handles)]
        engine.die()

        for stream in streams:
            with pytest.raises(EngineDeadError, match="Send it again"):
                await anext(stream)
        await until(lambda: not any(handle.is_ready for handle in handles))
        await until(lambda: all(handle.num_restarts == 1 for handle in handles))
        with pytest.raises(EngineDeadError):
            handles[0].generate(make_request("too early"))

        engine.begin()
        await until(lambda: all(handle.is_ready for handle in handles))
        stream = await admit(handles[0], "again")
        engine.bring(text("again", "x", FinishReason.STOP))
        assert (await anext(stream)).text == "x"


async def test_a_request_that_crosses_the_engines_death_is_not_left_running() -> None:
    engine = ToldEngine()
    async with shared(1, engine) as ([handle], _):
        stream = handle.generate(make_request("crosses"))
        # Both happen before the host reads it: the new engine is given a request of the old one.
        engine.die()
        engine.begin()

        with pytest.raises(EngineDeadError):
            await stream.admitted()
        await until(lambda: engine.ids(Abort) == ["crosses"])


async def test_gauges_are_everybodys_and_counts_are_told_once() -> None:
    engine = ToldEngine()
    async with shared(3, engine) as (handles, _):
        seen: list[list[EngineStats]] = [[], [], []]
        for handle, own in zip(handles, seen, strict=True):
            handle.subscribe(own.append)
        stats = EngineStats(
            running=2,
            slots_used=2,
            slots_total=4,
            context_tokens=50,
            prompt_tokens=11,
            generation_tokens=5,
            step_seconds=(0.01, 0.02),
            step_decodes=(1, 2),
            step_prefill_tokens=(0, 11),
            step_batch_sizes=(1, 2),
            num_forks=1,
            num_failed_rows=1,
        )
        engine.bring(stats=stats)
        await until(lambda: all(seen))

        assert all(handle.stats.running == 2 for handle in handles)
        assert all(handle.stats.context_tokens == 50 for handle in handles)
        told = [own for [own] in seen]
        assert [own for own in told if own == stats] == [stats]
        assert [own for own in told if own != stats] == [stats.gauges()] * 2
        assert sum(len(own.step_seconds) for own in told) == 2
        assert sum(own.generation_tokens for own in told) == 5


async def test_counts_go_to_one_that_is_there() -> None:
    engine = ToldEngine()
    engine.begin()
    host = EngineHost(engine)
    not_there, guest = host.open(), host.open()
    handle = HostedEngine(guest.address)
    await handle.start()
    seen: list[EngineStats] = []
    handle.subscribe(seen.append)

    engine.bring(stats=EngineStats(prompt_tokens=5))

    await until(lambda: bool(seen))
    assert seen[0].prompt_tokens == 5
    await handle.stop()
    await guest.close()
    await not_there.close()


async def test_counts_that_come_close_together_are_added_up() -> None:
    engine = ToldEngine()
    async with shared(1, engine) as ([handle], _):
        seen: list[EngineStats] = []
        handle.subscribe(seen.append)
        counts = ("prompt_tokens", "generation_tokens", "num_forks", "num_failed_rows")
        steps = ("step_seconds", "step_decodes", "step_prefill_tokens", "step_batch_sizes")
        for i in (1, 2, 3):
            happened = dict.fromkeys(counts, i) | dict.fromkeys(steps, (i,))
            engine.bring(stats=msgspec.convert({"running": i, **happened}, EngineStats))
        await until(lambda: bool(seen) and seen[-1].running == 3)
        for name in counts:
            assert sum(getattr(stats, name) for stats in seen) == 6
        for name in steps:
            assert [n for stats in seen for n in getattr(stats, name)] == [1, 2, 3]


async def test_a_guest_that_does_not_read_takes_no_memory_and_loses_nothing() -> None:
    engine = ToldEngine()
    engine.begin()
    host = EngineHost(engine)
    guest = host.open()
    line = Endpoint(guest.address)
    line.send(encode(Hello()))
    line.send(encode(AddRequest(make_request("slow"))))
    await until(lambda: guest.num_running == 1)
    # So many that neither the sockets nor the queues of ZeroMQ hold them.
    num_outputs = 20_000
    for i in range(num_outputs):
        engine.bring(text("slow", f"{i}," * 20))
        await asyncio.sleep(0)
    # Neither does what is tried again and again.
    for _ in range(5):
        await asyncio.sleep(1.2 * RETRY_SECONDS)
        engine.bring(text("slow", "late"))
    [stream] = guest._streams.values()
    assert len(stream._unread) <= 256
    assert len(guest._unsent) <= 1

    engine.bring(text("slow", "end", FinishReason.STOP))
    parts: list[str] = []
    finished = False
    while not finished:
        message = decode_host_message(await line.receive())
        for output in message.outputs if isinstance(message, HostNews) else ():
            parts.append(output.text)
            finished = output.finished
    assert "".join(parts) == "".join(f"{i}," * 20 for i in range(num_outputs)) + "late" * 5 + "end"
    await guest.close()
    line.close()


async def test_a_guest_is_told_whether_there_is_an_engine_when_it_comes() -> None:
    engine = ToldEngine()
    host = EngineHost(engine)
    guest = host.open()
    handle = HostedEngine(guest.address)
    starting = asyncio.create_task(handle.start())
    await asyncio.sleep(0.05)
    assert not starting.done()
    assert not handle.is_ready

    engine.begin()

    await asyncio.wait_for(starting, 5)
    assert handle.info.num_slots == NUM_SLOTS
    await handle.stop()
    await guest.close()


async def test_the_socket_of_a_guest_is_private_and_its_folder_gone_once_connected() -> None:
    engine = ToldEngine()
    engine.begin()
    guest = EngineHost(engine).open()
    folder = Path(guest.address.removeprefix("ipc://")).parent
    assert folder.stat().st_mode & 0o777 == 0o700

    handle = HostedEngine(guest.address)
    await handle.start()

    assert not folder.exists()
    await handle.stop()
    await guest.close()
