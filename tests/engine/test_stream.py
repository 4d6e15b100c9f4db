"""The client's side of a request, without an engine behind it."""

import asyncio

import pytest

from dijiang_runtime.engine.messages import Abort, AddRequest, ClientMessage, EngineInfo
from dijiang_runtime.engine.stream import RequestStream, to_exception
from dijiang_runtime.engine.stream_table import StreamTable
from dijiang_runtime.errors import (
    EngineDeadError,
    EngineOverloadedError,
    InvalidRequestError,
    NumericalError,
    QueueTimeoutError,
    RequestFailedError,
)
from dijiang_runtime.request import FinishReason, RequestError, RequestOutput
from tests.engine.requests import make_request

INFO = EngineInfo(
    vocab_size=100,
    max_model_len=1000,
    max_logprobs=20,
    bos_token_id=None,
    eos_token_ids=(),
    num_slots=2,
    state_bytes_per_sequence=1,
    state_bytes_total=2,
    num_parameters=0,
    num_layers=0,
    hidden_size=16,
    family="none",
    device="none",
    dtype="none",
    num_threads=1,
    max_queued_requests=2,
    max_queued_tokens=50,
    load_seconds=0.0,
    warmup_seconds=0.0,
)


def make_stream() -> RequestStream:
    return RequestStream(make_request("a"), on_abort=lambda request_id: None)


def delta(text: str, finish_reason: FinishReason | None = None) -> RequestOutput:
    return RequestOutput(
        request_id="a",
        text=text,
        token_ids=tuple(ord(c) for c in text),
        finish_reason=finish_reason,
    )


async def test_what_arrives_while_the_reader_is_busy_is_one_output() -> None:
    stream = make_stream()
    for text in ("a", "b", "c"):
        stream.push(delta(text))

    first = await anext(stream)
    stream.push(delta("d", FinishReason.STOP))
    second = await anext(stream)

    assert (first.text, first.token_ids, first.finish_reason) == ("abc", (97, 98, 99), None)
    assert (second.text, second.finish_reason) == ("d", FinishReason.STOP)
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_a_reader_that_never_comes_does_not_make_a_queue_grow() -> None:
    stream = make_stream()
    for _ in range(5000):
        stream.push(delta("ab"))

    assert len(stream._unread) <= 256
    assert (await anext(stream)).text == "ab" * 5000


async def test_a_waiting_reader_is_woken() -> None:
    stream = make_stream()
    reader = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    assert not reader.done()

    stream.push(delta("a"))

    assert (await reader).text == "a"


async def test_an_error_comes_after_what_was_not_read_and_stays() -> None:
    stream = make_stream()
    stream.push(delta("a"))
    stream.push(
        RequestOutput(
            request_id="a",
            finish_reason=FinishReason.ERROR,
            error=RequestError("NumericalError", "x"),
        )
    )

    assert (await anext(stream)).text == "a"
    for _ in range(2):
        with pytest.raises(NumericalError):
            await anext(stream)


async def test_nothing_follows_the_end() -> None:
    stream = make_stream()
    stream.push(delta("a", FinishReason.LENGTH))
    stream.push(delta("b"))
    stream.fail(EngineDeadError())

    assert [output.text async for output in stream] == ["a"]


async def test_leaving_early_aborts_once_and_leaving_at_the_end_does_not() -> None:
    aborted: list[str] = []
    with RequestStream(make_request("a"), aborted.append) as stream:
        stream.push(delta("a"))
    stream.abort()
    assert aborted == ["a"]
    assert [o.finish_reason async for o in stream] == [FinishReason.ABORT]

    with RequestStream(make_request("b"), aborted.append) as stream:
        stream.push(delta("a", FinishReason.STOP))
    assert aborted == ["a"]


class Table:
    """A `StreamTable` and what it has sent."""

    def __init__(self) -> None:
        self.sent: list[ClientMessage] = []
        self.table = StreamTable(INFO, self.sent.append)

    def open(self, name: str, num_prompt_tokens: int = 3) -> RequestStream:
        return self.table.open(make_request(name, [5] * num_prompt_tokens))

    def finish(self, name: str, reason: FinishReason = FinishReason.STOP) -> None:
        self.table.deliver([RequestOutput(request_id=name, finish_reason=reason)])


async def test_a_surplus_request_is_refused_before_it_is_sent() -> None:
    table = Table()
    streams = [table.open(str(i)) for i in range(4)]

    with pytest.raises(EngineOverloadedError) as refusal:
        table.open("surplus")
    assert refusal.value.retry_after_seconds >= 1.0
    assert len(table.sent) == 4

    table.finish("0")
    table.open("next")
    assert not streams[1]._ended


async def test_waiting_tokens_are_bounded_too() -> None:
    table = Table()
    for i in range(3):
        table.open(str(i), 500)

    with pytest.raises(EngineOverloadedError):
        table.open("surplus", 51)
    table.open("fits", 50)


async def test_tokens_that_wait_are_told_from_those_that_run() -> None:
    table = Table()
    # Two run; the urgent one will be the next, though it came last.
    for name, length, priority in (("a", 3, 0), ("b", 3, 0), ("c", 60, 0), ("d", 40, -1)):
        table.table.open(make_request(name, [5] * length, priority=priority))
    table.table.deliver([RequestOutput(request_id=name, text="x") for name in "ab"])

    # 60 and 40 wait: beside the longest there is room for ten tokens more.
    with pytest.raises(EngineOverloadedError):
        table.open("surplus", 11)


async def test_an_aborted_request_counts_until_the_engine_confirms_it() -> None:
    table = Table()
    streams = [table.open(str(i)) for i in range(4)]

    streams[0].abort()
    streams[0].abort()
    assert table.sent[4:] == [Abort("0")]
    with pytest.raises(EngineOverloadedError):
        table.open("surplus")

    table.finish("0", FinishReason.ABORT)
    table.open("next")


async def test_wrong_requests_are_not_sent() -> None:
    table = Table()
    with pytest.raises(InvalidRequestError):
        table.table.open(make_request("a", [100]))
    table.open("a")
    with pytest.raises(InvalidRequestError):
        table.open("a")

    assert [type(message) for message in table.sent] == [AddRequest]


async def test_a_dead_engine_ends_every_stream() -> None:
    table = Table()
    streams = [table.open(str(i)) for i in range(3)]

    table.table.fail_all(EngineDeadError())

    for stream in streams:
        with pytest.raises(EngineDeadError):
            await anext(stream)
    assert len(table.table) == 0


@pytest.mark.parametrize(
    "error",
    [NumericalError(), InvalidRequestError("x"), RequestFailedError("x"), QueueTimeoutError()],
)
def test_errors_keep_their_kind_across_the_wire(error: Exception) -> None:
    copy = to_exception(RequestError(type(error).__name__, str(error)))

    assert type(copy) is type(error)
    assert str(copy) == str(error)


async def test_outputs_that_came_apart_can_be_read_apart() -> None:
    stream = make_stream()
    outputs = [delta("a"), delta("b"), delta("c", FinishReason.STOP)]
    for output in outputs:
        stream.push(output)
    assert await stream.unread() == outputs
    assert await stream.unread() == []
