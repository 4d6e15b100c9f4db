"""`--api-workers`: several processes answer the API of one engine, and clients cannot tell."""

import contextlib
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from tests.e2e.server_process import ServerProcess, metrics

NUM_WORKERS = 3
REPORTED_SECONDS = 0.4
"""After this long the main process knows which connections are closed."""

FLAGS = ("--api-workers", str(NUM_WORKERS), "--served-model-name", "tiny")
SEEDED = {"prompt": "the quick", "max_tokens": 24, "temperature": 1.0, "seed": 7}
ENDLESS = {"prompt": "the", "max_tokens": 100_000, "ignore_eos": True, "stream": True}


@pytest.fixture(scope="module")
def server(tiny_model: Path) -> Iterator[ServerProcess]:
    """One for all tests that leave it as they found it."""
    with ServerProcess(tiny_model, *FLAGS, "--probe-port", "0") as process:
        wait_for_workers(process)
        yield process


def until(happens: Callable[[], bool], *, seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def connections_of(worker: psutil.Process, port: int) -> list[int]:
    """The clients' ports of a worker's connections on a port of the server."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return [c.raddr.port for c in worker.net_connections("tcp") if c.laddr.port == port]
    return []


def port_of(url: str) -> int:
    return httpx.URL(url).port or 0


def wait_for_workers(server: ServerProcess, num_workers: int = NUM_WORKERS) -> str:
    """The server's URL, when all its workers take connections and have the engine."""
    url = server.wait_ready()

    def all_answer() -> bool:
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(httpx.Client(base_url=url)) for _ in range(num_workers)]
            ready = [client.get("/readyz").status_code == 200 for client in clients]
            workers = server.workers
            busy = [worker for worker in workers if connections_of(worker, port_of(url))]
            return all(ready) and len(busy) == num_workers

    until(all_answer)
    # Where the next connection goes depends on what workers have told of the last ones.
    until(lambda: not any(connections_of(worker, port_of(url)) for worker in server.workers))
    time.sleep(REPORTED_SECONDS)
    return url


def worker_of(server: ServerProcess, response: httpx.Response) -> psutil.Process:
    """The worker at the other end of a response's connection."""
    stream = response.extensions["network_stream"]
    port = stream.get_extra_info("client_addr")[1]
    [worker] = [w for w in server.workers if port in connections_of(w, response.url.port or 0)]
    return worker


@contextlib.contextmanager
def stream_on_each(
    server: ServerProcess, url: str, *, num_streams: int = NUM_WORKERS
) -> Iterator[list[tuple[psutil.Process, Iterator[str]]]]:
    """Endless streams that have begun, and the worker of each."""
    with contextlib.ExitStack() as stack:
        streams = []
        for _ in range(num_streams):
            client = stack.enter_context(httpx.Client(base_url=url, timeout=60))
            response = stack.enter_context(client.stream("POST", "/v1/completions", json=ENDLESS))
            lines = response.iter_lines()
            next(lines)
            streams.append((worker_of(server, response), lines))
        yield streams


def finished(client: httpx.Client) -> Counter[str]:
    """The generation requests so far, by their outcome."""
    text = client.get("/metrics").text
    found: Counter[str] = Counter()
    for outcome, value in re.findall(
        r'^dijiang_requests_finished.*outcome="(\w+)".* (\S+)$', text, re.M
    ):
        found[outcome] += int(float(value))
    return found


def test_connections_go_to_the_worker_that_has_the_fewest(server: ServerProcess) -> None:
    url = wait_for_workers(server)
    with stream_on_each(server, url, num_streams=5 * NUM_WORKERS) as streams:
        assert sorted(Counter(worker.pid for worker, _ in streams).values()) == [5] * NUM_WORKERS


def test_a_worker_whose_clients_have_left_is_next(server: ServerProcess) -> None:
    url = wait_for_workers(server)
    clients = [httpx.Client(base_url=url) for _ in range(4 * NUM_WORKERS)]
    with contextlib.ExitStack() as stack:
        at: dict[int, list[httpx.Client]] = {}
        for client in clients:
            stack.enter_context(client)
            at.setdefault(worker_of(server, client.get("/livez")).pid, []).append(client)
        left, *_ = at
        for client in at[left]:
            client.close()
        until(
            lambda: (
                not any(w.pid == left and connections_of(w, port_of(url)) for w in server.workers)
            )
        )
        time.sleep(REPORTED_SECONDS)
        next_ones = [stack.enter_context(httpx.Client(base_url=url)) for _ in range(4)]
        assert {worker_of(server, client.get("/livez")).pid for client in next_ones} == {left}


def test_every_worker_answers_the_same(server: ServerProcess) -> None:
    url = wait_for_workers(server)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(httpx.Client(base_url=url)) for _ in range(NUM_WORKERS)]
        answers = [client.post("/v1/completions", json=SEEDED) for client in clients]
        assert len({worker_of(server, answer).pid for answer in answers}) == NUM_WORKERS
        assert len({answer.json()["choices"][0]["text"] for answer in answers}) == 1
        models = [client.get("/v1/models").json() for client in clients]
        assert models.count(models[0]) == NUM_WORKERS


def test_metrics_are_those_of_all_workers_whichever_is_asked(server: ServerProcess) -> None:
    url = wait_for_workers(server)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(httpx.Client(base_url=url)) for _ in range(NUM_WORKERS)]
        before = metrics(clients[0])
        for client in clients:
            for _ in range(4):
                assert client.post("/v1/completions", json=SEEDED).status_code == 200
        time.sleep(REPORTED_SECONDS)  # The engine tells of its steps ten times a second.
        seen = [metrics(client) for client in clients]
        assert len({worker_of(server, client.get("/livez")).pid for client in clients}) == len(seen)

    def grown(name: str) -> set[float]:
        return {now[name] - before[name] for now in seen}

    num_requests = 4 * NUM_WORKERS
    assert grown("dijiang_requests_received_total") == {num_requests}
    assert grown("dijiang_requests_finished_total") == {num_requests}
    assert grown("dijiang_e2e_request_latency_seconds_count") == {num_requests}
    [num_tokens] = grown("dijiang_generation_tokens_total")
    [num_prompt_tokens] = grown("dijiang_prompt_tokens_total")
    assert num_tokens == num_requests * SEEDED["max_tokens"]
    # Of the steps one worker is told: none is counted twice, and none is forgotten. The first token
    # of an answer comes with its prompt.
    assert grown("dijiang_iteration_tokens_sum") == {num_prompt_tokens + num_tokens - num_requests}
    for now in seen:
        assert now["dijiang_engine_ready"] == 1
        assert now["dijiang_build_info"] == 1
        assert now["process_resident_memory_bytes"] > NUM_WORKERS * 30e6


def test_every_worker_answers_on_the_port_for_probes(server: ServerProcess) -> None:
    wait_for_workers(server)
    [url] = re.findall(r"probes and metrics on (\S+)", server.text)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(httpx.Client(base_url=url)) for _ in range(NUM_WORKERS)]
        answers = [client.get("/readyz") for client in clients]
        assert [answer.status_code for answer in answers] == [200] * NUM_WORKERS
        assert len({worker_of(server, answer).pid for answer in answers}) == NUM_WORKERS
        assert clients[0].get("/v1/models").status_code == 404
        assert "dijiang_engine_ready" in clients[1].get("/metrics").text


def test_a_worker_that_is_killed_takes_only_its_own_streams_with_it(tiny_model: Path) -> None:
    with ServerProcess(tiny_model, *FLAGS) as server:
        url = wait_for_workers(server)
        with httpx.Client(base_url=url, timeout=60) as observer:
            for _ in range(5):
                observer.post("/v1/completions", json=SEEDED)
        with stream_on_each(server, url, num_streams=2 * NUM_WORKERS) as streams:
            with httpx.Client(base_url=url, timeout=60) as observer:
                victim = next(
                    w for w, _ in streams if w.pid != worker_of(server, observer.get("/livez")).pid
                )
                before = finished(observer), metrics(observer)
                victim.kill()

                for worker, lines in streams:
                    if worker.pid == victim.pid:
                        with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
                            list(lines)
                    else:
                        for _ in range(50):
                            next(lines)
                num_lost = sum(worker.pid == victim.pid for worker, _ in streams)
                assert num_lost == 2
                num_left = len(streams) - num_lost
                # The engine does not go on with what nobody reads.
                until(lambda: metrics(observer)["dijiang_num_requests_running"] == num_left)
                until(lambda: len(server.workers) == NUM_WORKERS)
                # The worker in its place has counted what it lost.
                until(lambda: finished(observer)["error"] == before[0]["error"] + num_lost)
                after = metrics(observer)
                assert all(
                    after[name] >= value
                    for name, value in before[1].items()
                    if name.endswith(("_total", "_count", "_sum", "_bucket"))
                )
        wait_for_workers(server)
        with httpx.Client(base_url=url) as client:
            until(lambda: metrics(client)["dijiang_num_requests_running"] == 0)
            now = metrics(client)
            assert now["dijiang_requests_received_total"] == finished(client).total()
            assert now["dijiang_engine_restarts"] == 0
        assert "was ended by signal 9; starting another" in server.text


@pytest.mark.slow
def test_a_worker_that_hangs_is_replaced(tiny_model: Path) -> None:
    with ServerProcess(tiny_model, *FLAGS) as server:
        url = wait_for_workers(server)
        victim = server.workers[0]
        victim.suspend()
        until(lambda: not victim.is_running(), seconds=60)
        wait_for_workers(server)
        assert httpx.post(f"{url}/v1/completions", json=SEEDED).status_code == 200


def test_when_the_engine_dies_the_streams_of_all_workers_end_with_an_error(
    tiny_model: Path,
) -> None:
    with ServerProcess(tiny_model, *FLAGS) as server:
        url = wait_for_workers(server)
        with stream_on_each(server, url) as streams:
            killed_at = time.monotonic()
            server.engine.kill()
            for _, lines in streams:
                last = [line for line in lines if line][-1]
                assert json.loads(last.removeprefix("data: "))["error"]["code"] == "engine_dead"
            assert time.monotonic() - killed_at < 1.0
        wait_for_workers(server)
        with httpx.Client(base_url=url) as client:
            assert metrics(client)["dijiang_engine_restarts"] == 1
            assert client.post("/v1/completions", json=SEEDED).status_code == 200


def test_sigterm_lets_the_streams_of_all_workers_finish(tiny_model: Path, tmp_path: Path) -> None:
    body = {**ENDLESS, "max_tokens": 1000}
    with ServerProcess(tiny_model, *FLAGS, env={"TMPDIR": str(tmp_path)}) as server:
        url = wait_for_workers(server)
        children = psutil.Process(server.process.pid).children(recursive=True)
        assert len(children) == NUM_WORKERS + 1

        with ThreadPoolExecutor(NUM_WORKERS) as pool, contextlib.ExitStack() as stack:
            responses = [
                stack.enter_context(
                    httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60)
                )
                for _ in range(NUM_WORKERS)
            ]
            streams = [response.iter_lines() for response in responses]
            for lines in streams:
                next(lines)
            assert len({worker_of(server, response).pid for response in responses}) == NUM_WORKERS
            ends = [pool.submit(list, lines) for lines in streams]
            server.signal(signal.SIGTERM)
            with httpx.Client(base_url=url) as client:
                until(lambda: client.get("/readyz").status_code == 503)
                assert client.get("/livez").status_code == 200
                refused = client.post("/v1/completions", json=SEEDED)
                assert refused.json()["error"]["code"] == "server_draining"
            for end in ends:
                assert end.result(30)[-2:] == ["data: [DONE]", ""]
        assert server.process.wait(10) == 0
        assert not any(child.is_running() for child in children)
    assert list(tmp_path.iterdir()) == []


def test_a_second_signal_ends_all_workers_at_once(tiny_model: Path) -> None:
    with ServerProcess(tiny_model, *FLAGS, "--drain-seconds", "600") as server:
        url = wait_for_workers(server)
        children = psutil.Process(server.process.pid).children(recursive=True)
        with stream_on_each(server, url):
            server.signal(signal.SIGTERM)
            with httpx.Client(base_url=url) as client:
                until(lambda: client.get("/readyz").status_code == 503)
            server.signal(signal.SIGTERM)
            assert server.process.wait(10) == 1
        assert not any(child.is_running() for child in children)


def test_no_process_outlives_the_server(tiny_model: Path) -> None:
    with ServerProcess(tiny_model, *FLAGS) as server:
        wait_for_workers(server)
        children = psutil.Process(server.process.pid).children(recursive=True)
        # Even one that cannot run any code of its own.
        server.workers[0].suspend()
        server.process.kill()
        server.process.wait()
        assert psutil.wait_procs(children, timeout=5)[1] == []


def test_the_limit_of_a_key_holds_for_all_workers_together(tiny_model: Path) -> None:
    with ServerProcess(tiny_model, *FLAGS, "--max-requests-per-key", "2") as server:
        url = wait_for_workers(server)

        def status() -> int:
            return httpx.post(f"{url}/v1/completions", json=SEEDED).status_code

        with stream_on_each(server, url, num_streams=2) as [(victim, lines), (other, _)]:
            assert victim.pid != other.pid
            refused = [httpx.post(f"{url}/v1/completions", json=SEEDED) for _ in range(NUM_WORKERS)]
            assert {answer.status_code for answer in refused} == {429}
            assert refused[0].json()["error"]["code"] == "too_many_requests"
            assert int(refused[0].headers["retry-after"]) >= 1
            # A worker's places are not lost with it.
            victim.kill()
            with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
                list(lines)
            until(lambda: status() == 200)
        until(lambda: [status() for _ in range(4)] == [200] * 4)


def test_new_keys_hold_for_every_worker(tiny_model: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("old\n")
    with ServerProcess(tiny_model, *FLAGS, "--api-key-file", str(keys)) as server:
        url = wait_for_workers(server)
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(httpx.Client(base_url=url)) for _ in range(NUM_WORKERS)]

            def answers(key: str) -> list[int]:
                headers = {"Authorization": f"Bearer {key}"}
                return [client.get("/v1/models", headers=headers).status_code for client in clients]

            assert (answers("old"), answers("new")) == ([200] * NUM_WORKERS, [401] * NUM_WORKERS)
            server.signal(signal.SIGHUP)
            until(lambda: server.text.count("API keys read again; valid: 1.") == NUM_WORKERS)
            # Changes are noticed without a signal as well.
            keys.write_text("new\n")
            until(lambda: answers("new") == [200] * NUM_WORKERS)
            assert answers("old") == [401] * NUM_WORKERS
        # And for one that comes later.
        for worker in server.workers:
            worker.kill()
        wait_for_workers(server)
        assert [
            httpx.get(f"{url}/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code
            for key in ("new", "old")
        ] == [200, 401]


def test_connections_wait_for_workers_that_are_busy(tiny_model: Path) -> None:
    """More than are held on the way to the workers."""
    with ServerProcess(tiny_model, "--api-workers", "2") as server:
        url = wait_for_workers(server, 2)
        address = ("127.0.0.1", port_of(url))
        workers = server.workers
        for worker in workers:
            worker.suspend()
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(socket.create_connection(address)) for _ in range(900)]
            for client in clients:
                client.settimeout(30)
                client.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            time.sleep(0.3)
            for worker in workers:
                worker.resume()
            answers = [client.recv(65536) for client in clients]
        assert all(answer.startswith(b"HTTP/1.1 200 ") for answer in answers)


def test_a_model_that_cannot_be_served_is_said_once(tiny_model: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model, broken)
    (broken / "generation_config.json").write_text('{"temperature": "hot"}')
    command = [sys.executable, "-m", "server.cli", "serve", str(broken), "--port", "0", *FLAGS]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert result.stderr.count("generation_config.json cannot be used") == 1
    assert "Traceback" not in result.stderr


def test_a_port_that_is_taken_is_refused_at_once(tiny_model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "server.cli", "serve", str(tiny_model), "--port", port]
        started = time.monotonic()
        result = subprocess.run([*command, *FLAGS], capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert "Address already in use" in result.stderr
    assert "Traceback" not in result.stderr
    assert time.monotonic() - started < 10
