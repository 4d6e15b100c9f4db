"""Attacks on a real server, each named after its case; what else proves a case is in `cases.py`."""

import asyncio
import importlib.metadata
import itertools
import json
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from server.middleware import PUBLIC_PATHS
from tests.campaigns.report import anonymous_bytes
from tests.campaigns.wire import Connection, request_bytes
from tests.e2e.server_process import ServerProcess, metrics, wait_for
from tests.fuzz.attack import complaint_about
from tests.security.conftest import KEY, MODEL_FOLDER

URL, CHAT = "/v1/completions", "/v1/chat/completions"
JSON = {"Content-Type": "application/json"}
PROMPT: dict[str, Any] = {"prompt": "the", "max_tokens": 2}
TEXT = "canary-text-of-a-prompt"


def refused(http: httpx.Client, status: int, body: Any, *, path: str = URL, **options: Any) -> Any:
    """Send a body that must be refused so, and return the error."""
    content = body if isinstance(body, bytes) else json.dumps(body)
    response = http.post(path, content=content, headers=JSON, **options)
    assert complaint_about(response.status_code, response.headers, response.content) is None
    assert response.status_code == status, response.text
    return response.json()["error"]


def raw(guarded: ServerProcess, data: bytes) -> bytes:
    """What the server answers to these bytes until it hangs up."""
    url = urlsplit(guarded.wait_ready())
    with socket.create_connection((url.hostname, url.port), timeout=10) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while part := connection.recv(65536):
            answer += part
    return answer


@pytest.mark.parametrize("field", [{"n": 10**6}, {"best_of": 10**6}, {"use_beam_search": True}])
def test_s01_a_request_for_very_much_is_refused_at_once(
    http: httpx.Client, guarded: ServerProcess, field: dict[str, Any]
) -> None:
    times, growths = [], []
    for _ in range(4):
        before = anonymous_bytes(guarded.process.pid)
        for _ in range(10):
            started = time.monotonic()
            refused(http, 400, {**PROMPT, **field})
            times.append(time.monotonic() - started)
        growths.append(anonymous_bytes(guarded.process.pid) - before)
    assert min(times) < 0.05
    # The first requests warm caches and arenas up; memory that a request keeps is kept every time.
    assert min(growths[1:]) < 2**20, growths


@pytest.mark.parametrize("prompt", [["a"] * 100_000, [[5]] * 100_000, ["a"] * 33])
def test_s02_prompts_and_choices_multiply(http: httpx.Client, prompt: Any) -> None:
    refused(http, 400, {**PROMPT, "prompt": prompt})
    refused(http, 400, {**PROMPT, "prompt": ["a"] * 5, "n": 8})


def test_s03_nothing_to_read_is_refused(http: httpx.Client) -> None:
    for prompt in ("", [], [[]], [""], ["a", ""]):
        refused(http, 400, {**PROMPT, "prompt": prompt})
    refused(http, 400, {"messages": []}, path=CHAT)
    refused(http, 400, {**PROMPT, "prompt": "", "echo": True, "max_tokens": 0})


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400", "-1e400"])
def test_s04_numbers_are_finite(http: httpx.Client, number: str) -> None:
    fields = ("temperature", "top_p", "min_p", "frequency_penalty", "presence_penalty", "timeout")
    for field in (*fields, "repetition_penalty"):
        error = refused(http, 400, f'{{"prompt": "a", "{field}": {number}}}'.encode())
        assert error["param"] == field
    refused(http, 400, f'{{"prompt": "a", "logit_bias": {{"5": {number}}}}}'.encode())


def test_s05_integers_have_bounds_and_are_integers(http: httpx.Client) -> None:
    for field, value in (
        *(("seed", s) for s in (2**63, -(2**63) - 1, 2**64)),
        *(("top_k", k) for k in (2**31, 2**63)),
        *(("max_tokens", m) for m in (-1, 2**63)),
        *(("n", n) for n in (True, "2", 1.0)),
    ):
        refused(http, 400, {**PROMPT, field: value})
    refused(http, 400, b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}")


@pytest.mark.parametrize("bad", [-1, 384, 2**31, 2**63])
def test_s06_ids_out_of_the_vocabulary_are_refused(http: httpx.Client, bad: int) -> None:
    for field, value in (
        ("prompt", [5, bad]),
        ("logit_bias", {str(bad): 1}),
        ("stop_token_ids", [bad]),
        ("allowed_token_ids", [bad]),
    ):
        assert refused(http, 400, {**PROMPT, field: value})["param"] == field


def test_s07_extreme_parameters_change_no_neighbour(http: httpx.Client) -> None:
    extremes = {
        "temperature": (0, 2),
        "top_p": (1e-6, 1),
        "top_k": (1, 2**31 - 1),
        "min_p": (0, 1),
        "frequency_penalty": (-2, 2),
        "presence_penalty": (-2, 2),
        "repetition_penalty": (0.01, 2),
        "seed": (-(2**63), 2**63 - 1),
        "logprobs": (0, 20),
    }
    pairs = [
        {a: x, b: y}
        for a, b in itertools.combinations(extremes, 2)
        for x in extremes[a]
        for y in extremes[b]
    ]
    mate = {"prompt": "the quick brown", "max_tokens": 30, "temperature": 0, "ignore_eos": True}
    alone = http.post(URL, json=mate).json()["choices"]

    def ask(fields: dict[str, Any]) -> tuple[int, Any]:
        response = http.post(URL, json={**PROMPT, "max_tokens": 4, **fields})
        return response.status_code, fields

    with ThreadPoolExecutor(3) as pool:
        answers = pool.map(ask, pairs)
        for _ in range(10):
            assert http.post(URL, json=mate).json()["choices"] == alone
        assert [fields for status, fields in answers if status != 200] == []


def test_s09_templates_come_from_the_operator(http: httpx.Client) -> None:
    messages = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
    attack = "{% for x in range(10**9) %}{{ ''.__class__ }}{% endfor %}"
    refused(http, 400, {**messages, "chat_template": attack}, path=CHAT)
    for kwargs in ({"chat_template": attack}, {"messages": []}, {"tokenize": True}, [attack]):
        started = time.monotonic()
        body = {**messages, "chat_template_kwargs": kwargs}
        response = http.post(CHAT, json=body)
        # A variable that no template reads has no effect; none takes the template's place.
        assert response.status_code in (200, 400)
        assert "class" not in response.text
        assert time.monotonic() - started < 2


@pytest.mark.parametrize("pattern", ["(a+)+$", "(" * 5000, "a{1,100000}{1,100000}"])
def test_s10_a_constraint_costs_no_more_than_a_request(http: httpx.Client, pattern: str) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": pattern}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    messages = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
    for path, body in (
        (URL, {**PROMPT, "guided_regex": pattern}),
        (CHAT, {**messages, "response_format": form}),
        (CHAT, {**messages, "tools": [tool], "tool_choice": "required"}),
    ):
        started = time.monotonic()
        response = http.post(path, json=body)
        # Refused, or done within bounds.
        assert response.status_code in (200, 400), response.text
        assert http.get("/livez").elapsed.total_seconds() < 1
        assert time.monotonic() - started < 5


def test_s12_odd_json_is_refused(http: httpx.Client) -> None:
    whole = b'{"prompt": "the", "max_tokens": 1}'
    for body in (
        *(b"", b"[" * 100_000, b"\xef\xbb\xbf" + whole, whole.decode().encode("utf-16")),
        *(whole + b"x", whole + b"\0", b'{"prompt": "\\ud800"}', b'{"prompt": "a\0"}'),
    ):
        refused(http, 400, body)
    # NUL, escaped, is a character like any other; of two equal keys the last one counts.
    assert http.post(URL, json={**PROMPT, "prompt": "a\0b"}).status_code == 200
    twice = b'{"prompt": 5, "prompt": "the", "max_tokens": 1}'
    assert http.post(URL, content=twice, headers=JSON).status_code == 200


def test_s14_bodies_have_a_longest_length(http: httpx.Client, guarded: ServerProcess) -> None:
    limit, whole = 2 * 2**20, b'{"prompt": "the", "max_tokens": 1}'
    assert http.post(URL, content=whole.ljust(limit), headers=JSON).status_code == 200
    refused(http, 413, whole.ljust(limit + 1))
    head = f"POST {URL} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n".encode()
    head += b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunks = b"10000\r\n" + b" " * 65536 + b"\r\n"
    assert b"HTTP/1.1 413 " in raw(guarded, head + chunks * 33)
    gzip = {**JSON, "Content-Encoding": "gzip"}
    assert http.post(URL, content=b"\x1f\x8b\x08\0", headers=gzip).status_code == 415


def test_s16_forms_are_not_read(http: httpx.Client) -> None:
    for kind in ("multipart/form-data; boundary=x", "application/x-www-form-urlencoded", "text/a"):
        response = http.post(URL, content=b"--x" * 1000, headers={"Content-Type": kind})
        assert response.status_code == 415


def test_s16_no_form_parser_is_installed_with_the_server() -> None:
    required = importlib.metadata.requires("dijiang-serving") or []
    assert not [name for name in required if "multipart" in name]


def test_s17_ranges_are_ignored(http: httpx.Client) -> None:
    ranges = {"Range": "bytes=" + ",".join(["0-0"] * 10_000)}
    for path in ("/", "/livez", "/v1/models", "/metrics", "/openapi.json"):
        started = time.monotonic()
        response = http.get(path, headers=ranges)
        assert response.status_code == 200
        assert "content-range" not in response.headers
        assert time.monotonic() - started < 1


def test_s18_connections_that_trickle_hurt_nobody(
    http: httpx.Client, guarded: ServerProcess
) -> None:
    url = urlsplit(guarded.wait_ready())
    head = f"POST {URL} HTTP/1.1\r\nHost: x\r\nContent-Length: 9".encode()
    sockets: list[socket.socket] = []
    try:
        for i in range(2000):
            sockets.append(socket.create_connection((url.hostname, url.port)))
            sockets[-1].sendall(head[: 1 + i % len(head)])
        assert http.post(URL, json=PROMPT).elapsed.total_seconds() < 1
        deadline = time.monotonic() + 10
        for connection in sockets:
            connection.settimeout(max(0.1, deadline - time.monotonic()))
            assert connection.recv(1) == b""
    finally:
        for connection in sockets:
            connection.close()


async def test_s19_ids_of_clients_may_collide(http: httpx.Client, guarded: ServerProcess) -> None:
    headers = f"X-Request-Id: same\r\nAuthorization: Bearer {KEY}\r\n"
    url = guarded.wait_ready()

    async def ask(leaves: bool) -> str | None:
        async with Connection(url) as connection:
            data = request_bytes(URL, {**PROMPT, "max_tokens": 20}, headers)
            if leaves:
                await connection.send(data)
                return None
            reply = await connection.exchange(data)
            assert reply.headers["x-request-id"] == "same"
            assert reply.status == 200, reply.body
            return str(reply.json()["id"])

    for _ in range(4):
        ids = await asyncio.gather(*(ask(i % 3 == 0) for i in range(15)))
        kept = [answer_id for answer_id in ids if answer_id]
        assert len(set(kept)) == len(kept) == 10
        # Those that left must not crowd out the next.
        await asyncio.to_thread(wait_for, http, "dijiang_state_slots_used", 0)


def test_s20_scanners_add_no_series(http: httpx.Client) -> None:
    def series() -> set[str]:
        page = http.get("/metrics").text
        return {line.rpartition(" ")[0] for line in page.splitlines() if line[:1] != "#"}

    http.get("/first-unknown")
    http.post(URL, json={**PROMPT, "model": "first"})
    before = series()
    for i in range(200):
        assert http.get(f"/{i}.php").status_code == 404
        assert http.post(URL, json={**PROMPT, "model": f"m{i}"}).status_code == 404
    assert {name for name in series() - before if "_created" not in name} == set()


def test_s21_nothing_listens_but_the_api(guarded: ServerProcess) -> None:
    port = urlsplit(guarded.wait_ready()).port
    listening = []
    for process in (psutil.Process(guarded.process.pid), guarded.engine):
        for connection in process.net_connections("inet"):
            if connection.status == psutil.CONN_LISTEN:
                listening.append(connection.laddr.port)
    assert listening == [port]


def test_s24_the_optimised_server_runs_without_asserts(guarded: ServerProcess) -> None:
    expected = {"", "1"}
    for process in (psutil.Process(guarded.process.pid), guarded.engine):
        expected &= {process.environ()["PYTHONOPTIMIZE"]}
    assert len(expected) == 1


def test_s25_tensors_are_no_input(http: httpx.Client) -> None:
    for value in ("AAAA", ["AAAA"], {"shape": [1]}):
        error = refused(http, 400, {**PROMPT, "prompt_embeds": value})
        assert error["code"] == "unsupported_parameter"


def test_s28_the_server_asks_nobody(http: httpx.Client) -> None:
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.settimeout(0.3)
        url = f"http://127.0.0.1:{trap.getsockname()[1]}/x"
        part = {"type": "image_url", "image_url": {"url": url}}
        refused(http, 400, {"messages": [{"role": "user", "content": [part]}]}, path=CHAT)
        for field in ("image_url", "file_url", "lora_request"):
            refused(http, 400, {**PROMPT, field: url})
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": url}}}
        messages = [{"role": "user", "content": "x"}]
        refused(http, 400, {"messages": messages, "response_format": form}, path=CHAT)
        with pytest.raises(TimeoutError):
            trap.accept()


def test_s29_a_client_writes_no_log_lines(http: httpx.Client, guarded: ServerProcess) -> None:
    http.get("/a%0d%0a2026-01-01 INFO forged%1b[31m")
    http.get("/b", headers={"X-Request-Id": "a;forged", "User-Agent": "forged"})
    http.post(URL, json={**PROMPT, "model": "\r\nforged"})
    http.get("/the-last-of-these")
    deadline = time.monotonic() + 5
    while "/the-last-of-these" not in guarded.text and time.monotonic() < deadline:
        time.sleep(0.01)
    lines = [line for line in guarded.text.splitlines() if "forged" in line]
    assert len(lines) == 1
    assert re.match(r"\d{4}-\d\d-\d\d \S+ INFO ", lines[0])
    assert "\x1b" not in lines[0]


@pytest.mark.parametrize(
    "request_line",
    [
        "GET /metrics HTTP/1.1\r\nHost: x/livez?",
        "GET /metrics HTTP/1.1\r\nHost: x#",
        "GET /metrics HTTP/1.1\r\nHost: x\r\nHost: x/livez",
        "GET http://x/livez/../metrics HTTP/1.1\r\nHost: x",
        "GET http://x/metrics HTTP/1.1\r\nHost: x/livez",
        "GET //metrics HTTP/1.1\r\nHost: x",
        "GET /livez/../metrics HTTP/1.1\r\nHost: x",
        "GET /%6detrics HTTP/1.1\r\nHost: x",
        "GET /livez%2f..%2fmetrics HTTP/1.1\r\nHost: x",
        "GET /METRICS HTTP/1.1\r\nHost: x",
        "GET /metrics/ HTTP/1.1\r\nHost: x",
        "GET /metrics;/livez HTTP/1.1\r\nHost: x",
        "GET /metrics?x=/livez HTTP/1.1\r\nHost: x",
        "GET /metrics HTTP/1.0",
        "HEAD /metrics HTTP/1.1\r\nHost: x",
        "GET /metrics HTTP/1.1\r\nHost: x\r\nX-Original-URL: /livez",
        "GET /metrics HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 127.0.0.1",
    ],
)
def test_s31_only_the_path_decides_who_needs_a_key(
    http: httpx.Client, guarded: ServerProcess, request_line: str
) -> None:
    answer = raw(guarded, request_line.encode() + b"\r\nConnection: close\r\n\r\n")
    assert answer.split(b" ", 2)[1] in (b"401", b"400"), answer[:300]
    assert b"dijiang_" not in answer


def test_s32_every_route_of_the_document_needs_a_key(
    http: httpx.Client, guarded: ServerProcess
) -> None:
    paths = http.get("/openapi.json").json()["paths"]
    assert len(paths) > 8
    for path, methods in paths.items():
        for method in methods:
            answer = httpx.request(method, guarded.wait_ready() + path, headers=JSON)
            assert (answer.status_code != 401) == (path in PUBLIC_PATHS), path
    for path in ("/docs", "/redoc", "/pause", "/server_info", "/invocations", "/nothing"):
        assert httpx.get(guarded.wait_ready() + path).status_code == 401


@pytest.mark.parametrize(
    "key",
    [
        b"x",
        KEY[:-1].encode(),
        KEY.encode() + b"x",
        b"x" + KEY[1:].encode(),
        "clé".encode(),
        b"\xff",
    ],
)
def test_s33_wrong_keys_are_refused_alike(
    http: httpx.Client, guarded: ServerProcess, key: bytes
) -> None:
    headers = [(b"Authorization", b"Bearer " + key)]
    answer = httpx.get(guarded.wait_ready() + "/v1/models", headers=headers)
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"


def test_s34_secrets_are_written_nowhere(http: httpx.Client, guarded: ServerProcess) -> None:
    answers = []
    for body in (
        {**PROMPT, "prompt": TEXT},
        {**PROMPT, "prompt": TEXT, "n": TEXT},
        {**PROMPT, "prompt": TEXT, "stop": [TEXT] * 99},
        {**PROMPT, "model": TEXT},
        {**PROMPT, TEXT: TEXT, "temperature": -1},
    ):
        answers.append(http.post(URL, json=body))
    answers.append(http.post(URL, content=f'{{"prompt": "{TEXT}'.encode(), headers=JSON))
    answers.append(http.get("/v1/models"))
    for answer in answers:
        told = answer.text + str(answer.headers)
        assert KEY not in told and MODEL_FOLDER not in told
        assert TEXT not in told.replace("x-ignored-parameters", "") or answer.status_code == 200
    written = [guarded.text, http.get("/metrics").text]
    for process in (psutil.Process(guarded.process.pid), guarded.engine):
        written.append(" ".join(process.cmdline()).replace(MODEL_FOLDER, "", 1))
    for text in written:
        assert KEY not in text and TEXT not in text
    assert MODEL_FOLDER not in written[1]
    assert MODEL_FOLDER not in " ".join(guarded.engine.cmdline())


def test_s39_pages_of_others_get_nothing(http: httpx.Client, guarded: ServerProcess) -> None:
    for origin in ("http://evil.example", "null", guarded.wait_ready()):
        headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        for method in ("GET", "OPTIONS", "POST"):
            answer = http.request(method, URL, headers=headers)
            assert not [n for n in answer.headers if n.startswith("access-control")]


async def test_r12_a_flood_is_refused_at_once_and_the_accepted_are_served(
    http: httpx.Client, guarded: ServerProcess
) -> None:
    url, headers = guarded.wait_ready(), f"Authorization: Bearer {KEY}\r\n"
    room = 4 + 16
    short = request_bytes(URL, PROMPT, headers)
    # Long enough that the queue stays full for as long as the flood lasts.
    long = request_bytes(URL, {**PROMPT, "max_tokens": 3000, "ignore_eos": True}, headers)
    statuses: list[int] = []
    times: list[float] = []

    async def ask(body: bytes) -> None:
        async with Connection(url) as connection:
            started = time.monotonic()
            reply = await connection.exchange(body)
            statuses.append(reply.status)
            if reply.status == 429:
                times.append(time.monotonic() - started)
                assert int(reply.headers["retry-after"]) >= 1
                assert reply.json()["error"]["code"] == "engine_overloaded"

    full = [asyncio.create_task(ask(long)) for _ in range(room)]
    await asyncio.to_thread(wait_for, http, "dijiang_num_requests_waiting", 16)
    # Nine times as many again, a few at a time, as clients that come one after the other.
    for _ in range(9 * room // 4):
        await asyncio.gather(*(ask(short) for _ in range(4)))
    await asyncio.gather(*full)
    assert statuses.count(200) >= room
    assert statuses.count(429) + statuses.count(200) == 10 * room
    assert len(times) > 5 * room
    assert sorted(times)[len(times) // 2] < 0.05
    assert metrics(http)["dijiang_engine_restarts"] == 0


def test_r23_a_client_that_stops_reading_is_given_up(
    http: httpx.Client, guarded: ServerProcess
) -> None:
    url = urlsplit(guarded.wait_ready())
    endless = {**PROMPT, "max_tokens": 1_000_000, "ignore_eos": True, "stream": True}
    endless |= {"logprobs": 20, "n": 4}
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((url.hostname, url.port))
        connection.sendall(request_bytes(URL, endless, f"Authorization: Bearer {KEY}\r\n"))
        wait_for(http, "dijiang_state_slots_used", 4)
        deadline = time.monotonic() + 30
        while metrics(http)["dijiang_state_slots_used"] and time.monotonic() < deadline:
            time.sleep(0.2)
        assert metrics(http)["dijiang_state_slots_used"] == 0
