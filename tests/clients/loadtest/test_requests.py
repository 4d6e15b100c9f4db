"""What goes over the wire, and what becomes of requests that fail."""

import asyncio
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from clients.errors import ServerUnreachableError
from clients.loadtest.connections import open_pool, parse_address
from clients.loadtest.options import Load
from clients.loadtest.records import Recorder, RequestRecord
from clients.loadtest.sender import RequestBuilder, Sender
from clients.loadtest.workloads import WorkloadOptions
from tests.clients.loadtest.conftest import Fake

StartFake = Callable[..., Fake]
ONE_USER = Load("concurrency", 1)


def texts(body: dict[str, Any]) -> list[str]:
    return [message["content"] for message in body["messages"]]


def test_the_same_seed_sends_the_same(start_fake: StartFake) -> None:
    def sent(seed: int) -> list[Any]:
        fake = start_fake(ttft_seconds=[0.001], itl_seconds=[0.001], num_tokens=2)
        fake.load(Load("rate", 200), num_requests=20, seed=seed)
        return sorted(texts(body) for body in fake.counts()["bodies"])

    assert sent(1) == sent(1)
    assert sent(1) != sent(2)


def test_turns_send_all_that_was_said(quick: Fake) -> None:
    workload = WorkloadOptions(turns="3", shared_prefix_tokens=8)
    quick.load(ONE_USER, workload=workload, num_requests=1)
    first, second, third = (body["messages"] for body in quick.counts()["bodies"])
    assert [message["role"] for message in third] == [
        "system", "user", "assistant", "user", "assistant", "user",
    ]  # fmt: skip
    assert second[: len(first)] == first
    assert third[: len(second)] == second
    assert third[2]["content"] == third[4]["content"] == " word" * 4


def test_completions_continue_the_same_text(quick: Fake) -> None:
    workload = WorkloadOptions(turns="2", shared_prefix_tokens=8)
    quick.load(ONE_USER, workload=workload, num_requests=1, endpoint="completions")
    first, second = (body["prompt"] for body in quick.counts()["bodies"])
    assert second.startswith(first + "\n\n" + " word" * 4)


def test_conversations_share_a_prefix_on_the_wire(quick: Fake) -> None:
    workload = WorkloadOptions(shared_prefix_tokens=100, num_prefixes=2)
    quick.load(Load("concurrency", 4), workload=workload, num_requests=20)
    sent = [texts(body) for body in quick.counts()["bodies"]]
    assert len(sent) == 20
    assert len({prefix for prefix, _ in sent}) == 2
    assert len({text for _, text in sent}) == 20


def test_two_loads_of_a_sweep_send_different_texts(quick: Fake) -> None:
    quick.report(loads=(ONE_USER, Load("concurrency", 2)), num_requests=5)
    sent = [texts(body)[0] for body in quick.counts()["bodies"]]
    assert len(set(sent)) == len(sent) == 10


def test_every_request_asks_for_usage_and_has_the_extra_fields(quick: Fake) -> None:
    quick.load(ONE_USER, num_requests=1, extra={"ignore_eos": True, "temperature": 0.5})
    [body] = quick.counts()["bodies"]
    assert body["stream"] is True
    assert body["stream_options"] == {"include_usage": True}
    assert (body["model"], body["max_tokens"]) == ("fake-model", 64)
    assert (body["ignore_eos"], body["temperature"]) == (True, 0.5)


def test_prompts_have_the_length_that_the_server_counts(quick: Fake) -> None:
    workload = WorkloadOptions(prompt_tokens="103")
    result = quick.load(Load("concurrency", 2), workload=workload, num_requests=4)
    assert result["tokens"]["prompt"]["min"] == result["tokens"]["prompt"]["max"] == 103


def test_failures_are_counted_by_kind(start_fake: StartFake) -> None:
    fake = start_fake(
        ttft_seconds=[0.005], itl_seconds=[0.005], num_tokens=4, statuses=[200, 429, 500, 0, 1, 2]
    )
    result = fake.load(Load("rate", 100), arrivals="constant", num_requests=12, timeout_seconds=0.5)
    counts = {kind: error["count"] for kind, error in result["requests"]["errors"].items()}
    assert counts == {"http_429": 2, "http_500": 2, "cut": 2, "stream_error": 2, "timeout": 2}
    assert result["requests"]["errors"]["http_429"]["message"] == "Told to answer 429."
    assert result["requests"]["errors"]["stream_error"]["message"] == "The engine died."
    assert (result["requests"]["completed"], result["requests"]["failed"]) == (2, 10)
    # What failed has no latency.
    assert result["latency"]["ttft"]["count"] == 2


@pytest.fixture
def unused_port() -> Iterator[int]:
    """A port that nobody listens on, and that nobody else can take."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        yield unused.getsockname()[1]


def test_a_server_that_is_not_there_is_an_error_at_once(unused_port: int) -> None:
    with pytest.raises(ServerUnreachableError):
        Fake(f"http://127.0.0.1:{unused_port}").load(ONE_USER)


def test_a_name_with_several_addresses_is_tried_until_one_answers(quick: Fake) -> None:
    # The fake server listens on 127.0.0.1 alone; localhost may be ::1 first.
    by_name = Fake(quick.url.replace("127.0.0.1", "localhost"))
    assert by_name.load(ONE_USER, num_requests=2)["requests"]["completed"] == 2


async def test_a_server_that_went_away_is_counted(unused_port: int) -> None:
    address = parse_address(f"http://127.0.0.1:{unused_port}")
    sender = Sender(await open_pool(address), Recorder(), timeout_seconds=5.0, keep_text=False)
    record = RequestRecord(0, 0, 4, intended=0.0)
    await sender.send(b"GET / HTTP/1.1\r\n\r\n", record)
    assert record.error == "refused"


@pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "ftp://host", "http://", "http://h:x"])
def test_what_is_not_an_address_is_refused(url: str) -> None:
    with pytest.raises(ServerUnreachableError):
        parse_address(url)


def test_an_address_may_have_a_path_and_hides_who_asks() -> None:
    address = parse_address("https://user:secret@host/proxy/v1/")
    assert (address.host, address.port, address.path) == ("host", 443, "/proxy")
    assert address.url == "https://host:443/proxy"
    assert parse_address("http://[::1]:9/v1").url == "http://[::1]:9"


Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]


@asynccontextmanager
async def serving(
    answer: Answer, tls: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[Callable[..., Any], RequestRecord]]:
    """A server made of one function, and what sends it a request."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer(reader, writer)
        finally:
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls) as server:
        port = server.sockets[0].getsockname()[1]
        address = parse_address(f"{'https' if tls else 'http'}://127.0.0.1:{port}")
        pool = await open_pool(address)
        sender = Sender(pool, Recorder(), timeout_seconds=5.0, keep_text=True)
        request = RequestBuilder(address, "chat", "m", {}, "a-key").build("", ["hi"], 4)
        record = RequestRecord(0, 0, 4, intended=0.0)
        yield lambda: sender.send(request, record), record
        pool.close()


async def read_request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length:")[1].split()[0])
    return head + await reader.readexactly(length)


EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":"stop"}]}\n\n'
DONE = b"data: [DONE]\n\n"


def response(body: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)


async def test_an_idle_connection_that_the_server_closed_is_no_failure() -> None:
    async def answer_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(response(EVENT + DONE))
        # Takes the next request and hangs up, as a server does whose patience ends just then.
        await read_request(reader)

    async with serving(answer_once) as (send, record):
        assert await send() == "a"
        assert await send() == "a"
        assert record.error is None


async def test_the_key_is_sent() -> None:
    seen = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await read_request(reader))
        writer.write(response(EVENT + DONE))

    async with serving(answer) as (send, _):
        await send()
    assert b"\r\nAuthorization: Bearer a-key\r\n" in seen[0]


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1, signed by itself, and its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs openssl to make a certificate")
    files = tmp_path / "certificate.pem", tmp_path / "key.pem"
    make = f"{openssl} req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
    subject = ["-subj", "/CN=fake", "-addext", "subjectAltName=IP:127.0.0.1"]
    names = ["-out", str(files[0]), "-keyout", str(files[1])]
    subprocess.run([*make.split(), *subject, *names], check=True, capture_output=True)
    return files


@pytest.mark.parametrize(("is_trusted", "kind"), [(True, None), (False, "connect")])
async def test_https_is_spoken_with_those_whose_certificate_is_trusted(
    certificate: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    is_trusted: bool,
    kind: str | None,
) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(response(EVENT + DONE))
        await writer.drain()

    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(*certificate)
    if is_trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    async with serving(answer, tls) as (send, record):
        assert await send() == ("a" if is_trusted else "")
        assert record.error == kind


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (response(EVENT + DONE), None),
        (response(EVENT), None),  # A finish reason and a proper end say as much as [DONE].
        (response(b": ping\n\n" + EVENT + DONE)[:-5], None),
        (response(EVENT.replace(b'"stop"', b"null")), "cut"),
        (response(EVENT + DONE)[:-30], "cut"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n<html>x</html>", "protocol"),
        (response(b"data: {}\n\n" + DONE), "protocol"),
        (response(b"data: [1]\n\n" + DONE), "protocol"),
        (response(b"data: no json\n\n" + DONE), "protocol"),
        (response(b'data: {"error": "oh"}\n\n'), "stream_error"),
        (b"SSH-2.0-x\r\n", "protocol"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 1\r\n\r\n?", "http_404"),
        (b"", "cut"),
    ],
)
async def test_a_response_is_judged(body: bytes, kind: str | None) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(body)

    async with serving(answer) as (send, record):
        await send()
        assert record.error == kind


async def test_a_load_test_that_is_stopped_leaves_its_streams() -> None:
    left = asyncio.Event()
    begun = asyncio.Event()

    async def never_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        begun.set()
        try:
            await reader.read()
        except ConnectionError:
            pass
        left.set()

    async with serving(never_end) as (send, record):
        task = asyncio.ensure_future(send())
        await begun.wait()
        task.cancel()
        await asyncio.wait([task])
        await left.wait()
        assert record.error == "cancelled"
