"""The engine in its own process: it answers, dies, hangs, comes back, and leaves no trace."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from dijiang_runtime.config import EngineConfig
from dijiang_runtime.engine.child import EngineChild
from dijiang_runtime.engine.client import (
    EngineClient,
    EngineHost,
    EngineProcess,
    HostedEngine,
    InProcessEngine,
)
from dijiang_runtime.engine.engine import Engine
from dijiang_runtime.engine.merge import merge_outputs
from dijiang_runtime.engine.stream import RequestStream
from dijiang_runtime.errors import DiJiangError, EngineDeadError, ModelLoadError
from dijiang_runtime.request import FinishReason, RequestOutput
from tests.engine.requests import make_request, random_requests

ENDLESS = {"max_tokens": 100_000, "ignore_eos": True}


@pytest.fixture(autouse=True, scope="module")
def private_temporary_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the sockets go, so that what is left behind can be seen."""
    folder = tmp_path_factory.mktemp("t")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))
        patch.setattr("tempfile.tempdir", None)
        yield folder
        assert list(folder.glob("dijiang-*")) == []


@pytest.fixture(scope="module")
def config(tiny_model: Path) -> EngineConfig:
    return EngineConfig(model=tiny_model, max_slots=8, num_threads=1)


@pytest_asyncio.fixture(loop_scope="module", scope="module", params=["process", "thread", "hosted"])
async def engine(
    request: pytest.FixtureRequest, config: EngineConfig
) -> AsyncIterator[EngineClient]:
    client = InProcessEngine(config) if request.param == "thread" else EngineProcess(config)
    await client.start()
    if request.param != "hosted":
        yield client
    else:
        guest = EngineHost(client).open()
        hosted = HostedEngine(guest.address)
        await hosted.start()
        yield hosted
        await hosted.stop()
        await guest.close()
    await client.stop()


async def collect(stream: RequestStream) -> RequestOutput:
    return merge_outputs([output async for output in stream])


async def until(condition, timeout: float = 20.0) -> float:
    """Wait for something that is told by no event; return how long it took."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < timeout, "it did not happen"
        await asyncio.sleep(0.005)
    return time.monotonic() - started


@pytest.mark.asyncio(loop_scope="module")
class TestService:
    """What any `EngineClient` does: in a process, in a thread, or hosted by another process."""

    async def test_answers_are_those_of_the_engine_itself(
        self, engine: EngineClient, config: EngineConfig
    ) -> None:
        requests = random_requests(seed=7, num_requests=8, max_prompt_tokens=100)
        reference = Engine.from_config(config)
        expected = []
        for request in requests:
            reference.add_request(request)
            parts = []
            while reference.has_work:
                parts.extend(reference.step())
            expected.append(merge_outputs(parts))

        got = await asyncio.gather(*(collect(engine.generate(r)) for r in requests))

        for ours, theirs in zip(got, expected, strict=True):
            assert (ours.text, ours.token_ids) == (theirs.text, theirs.token_ids)
            assert (ours.logprobs, ours.prompt_logprobs) == (
                theirs.logprobs,
                theirs.prompt_logprobs,
            )
            assert (ours.finish_reason, ours.stop_reason) == (
                theirs.finish_reason,
                theirs.stop_reason,
            )

    async def test_leaving_a_stream_frees_its_slot(self, engine: EngineClient) -> None:
        with engine.generate(make_request("leaves", **ENDLESS)) as stream:
            await anext(stream)
            await until(lambda: engine.stats.slots_used == 1)

        await until(lambda: engine.stats.slots_used == 0)
        # No part of its answer comes after the end.
        assert [o.finish_reason async for o in stream] in ([], [FinishReason.ABORT])

    async def test_a_new_request_does_not_wait_for_a_heartbeat(self, engine: EngineClient) -> None:
        waits = []
        for i in range(10):
            started = time.monotonic()
            await collect(engine.generate(make_request(f"quick-{i}", max_tokens=1)))
            waits.append(time.monotonic() - started)

        assert min(waits) < 0.05

    async def test_stats_come_with_work_and_without(self, engine: EngineClient) -> None:
        seen = []
        engine.subscribe(seen.append)
        await collect(engine.generate(make_request("counted", [5] * 70, max_tokens=3)))
        await until(lambda: sum(s.generation_tokens for s in seen) == 3)
        num_seen = len(seen)
        await until(lambda: len(seen) > num_seen + 2)

        assert sum(s.prompt_tokens for s in seen) == 70
        assert (seen[-1].running, seen[-1].slots_used, seen[-1].slots_total) == (0, 0, 8)

    async def test_a_ready_engine_tells_its_facts(self, engine: EngineClient) -> None:
        assert engine.is_ready
        assert engine.info.num_slots == 8
        assert engine.info.warmup_seconds > 0


async def test_a_killed_engine_ends_every_stream_at_once_and_comes_back(
    config: EngineConfig,
) -> None:
    engine = EngineProcess(config)
    await engine.start()
    pid = engine.pid
    assert pid is not None
    streams = [engine.generate(make_request(f"r{i}", **ENDLESS)) for i in range(12)]
    await anext(streams[0])

    killed_at = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    ends = await asyncio.gather(*(collect(s) for s in streams), return_exceptions=True)

    assert time.monotonic() - killed_at < 1.0
    assert [type(end) for end in ends] == [EngineDeadError] * 12
    assert not engine.is_ready
    with pytest.raises(EngineDeadError):
        engine.generate(make_request("too early"))

    await until(lambda: engine.is_ready)
    assert engine.num_restarts == 1
    assert engine.pid != pid
    assert (await collect(engine.generate(make_request("again", max_tokens=3)))).finished
    await engine.stop()


@pytest.mark.parametrize("works", [True, False], ids=["works", "does nothing"])
async def test_only_an_engine_that_does_nothing_but_die_comes_back_late(
    config: EngineConfig, works: bool
) -> None:
    engine = EngineProcess(config, first_pause_seconds=60.0)
    await engine.start()
    for _ in range(2):
        await until(lambda: engine.is_ready)
        if works:
            await collect(engine.generate(make_request("r", max_tokens=2)))
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGKILL)
        await until(lambda: not engine.is_ready)
    if works:
        await until(lambda: engine.is_ready)
    else:
        with pytest.raises(AssertionError, match="did not happen"):
            await until(lambda: engine.is_ready, timeout=6.0)
    await engine.stop()


async def test_a_hanging_engine_is_noticed_killed_and_replaced(tiny_model: Path) -> None:
    config = EngineConfig(model=tiny_model, max_slots=4, num_threads=1, step_timeout_seconds=1.0)
    engine = EngineProcess(config)
    await engine.start()
    process = psutil.Process(engine.pid)
    stream = engine.generate(make_request("r", **ENDLESS))
    await anext(stream)

    stopped_at = time.monotonic()
    process.suspend()
    with pytest.raises(EngineDeadError):
        await collect(stream)

    assert 0.9 < time.monotonic() - stopped_at < 3.0
    await until(lambda: engine.is_ready)
    assert not process.is_running()
    await engine.stop()


async def test_an_engine_that_hangs_while_it_loads_is_killed_and_given_up(
    tiny_model: Path,
) -> None:
    config = EngineConfig(model=tiny_model, num_threads=1, load_timeout_seconds=0.5)
    engine = EngineProcess(config, max_failed_loads=2, first_pause_seconds=0.01)
    started_at = time.monotonic()
    starting = asyncio.create_task(engine.start())
    stopped: set[psutil.Process] = set()
    while not starting.done():
        if engine.pid and psutil.pid_exists(engine.pid):
            process = psutil.Process(engine.pid)
            process.suspend()
            stopped.add(process)
        await asyncio.sleep(0.02)

    with pytest.raises(EngineDeadError, match=r"did not load within 0\.5 s"):
        await starting

    assert 1.0 <= time.monotonic() - started_at < 5.0
    assert len(stopped) == 2
    assert not any(process.is_running() for process in stopped)
    await engine.stop()


async def test_a_model_that_cannot_load_is_an_error_at_once(tmp_path: Path) -> None:
    engine = EngineProcess(EngineConfig(model=tmp_path))

    with pytest.raises(ModelLoadError, match=r"tokenizer\.json|config\.json"):
        await engine.start()

    assert engine.num_restarts == 0
    assert not engine.is_ready
    await engine.stop()


async def test_an_engine_that_never_loads_is_given_up(
    config: EngineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    engine = EngineProcess(config, max_failed_loads=3, first_pause_seconds=0.01)

    with pytest.raises(EngineDeadError, match="status 1"):
        await engine.start()

    assert engine.num_restarts == 2
    await engine.stop()


async def test_an_engine_that_does_not_come_back_is_given_up_and_says_so(
    config: EngineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = EngineProcess(config, max_failed_loads=2, first_pause_seconds=0.01)
    await engine.start()
    failed = asyncio.ensure_future(engine.wait_failed())
    assert engine.pid is not None
    monkeypatch.setattr(sys, "executable", "/bin/false")

    os.kill(engine.pid, signal.SIGKILL)

    with pytest.raises(DiJiangError):
        await failed
    assert not engine.is_ready
    await engine.stop()


async def test_stopping_lets_requests_finish_within_the_grace_period(
    config: EngineConfig,
) -> None:
    engine = EngineProcess(config)
    await engine.start()
    pid = engine.pid
    short = engine.generate(make_request("short", max_tokens=50, ignore_eos=True))
    answer = asyncio.ensure_future(collect(short))

    await engine.stop(grace_seconds=20.0)

    assert (await answer).num_output_tokens == 50
    assert not psutil.pid_exists(pid or 0)
    with pytest.raises(EngineDeadError):
        engine.generate(make_request("too late"))


async def test_stopping_without_grace_ends_what_runs(config: EngineConfig) -> None:
    engine = EngineProcess(config)
    await engine.start()
    stream = engine.generate(make_request("long", **ENDLESS))
    await anext(stream)

    await engine.stop()

    with pytest.raises(EngineDeadError):
        await collect(stream)


async def test_an_idle_engine_sleeps(config: EngineConfig) -> None:
    engine = EngineProcess(config)
    await engine.start()
    process = psutil.Process(engine.pid)
    before = process.cpu_times()

    await asyncio.sleep(1.0)

    after = process.cpu_times()
    assert after.user + after.system - before.user - before.system < 0.15
    await engine.stop()


async def test_the_socket_is_private_and_its_folder_gone_once_connected(
    config: EngineConfig, private_temporary_folder: Path
) -> None:
    child = EngineChild(config, on_step=lambda message: None)
    [folder] = private_temporary_folder.glob("dijiang-*")
    assert folder.stat().st_mode & 0o777 == 0o700

    await child.load()

    assert not folder.exists()
    await child.close()


def test_no_engine_outlives_its_parent(tiny_model: Path, private_temporary_folder: Path) -> None:
    script = textwrap.dedent(
        f"""
        import asyncio
        from pathlib import Path
        from dijiang_runtime.config import EngineConfig
        from dijiang_runtime.engine.client import EngineProcess

        async def main():
            engine = EngineProcess(EngineConfig(model=Path({str(tiny_model)!r}), num_threads=1))
            await engine.start()
            print(engine.pid, flush=True)
            await asyncio.sleep(1000)

        asyncio.run(main())
        """
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        # Even one that cannot run any code of its own.
        child.suspend()
        parent.kill()
    with contextlib.suppress(psutil.NoSuchProcess):
        child.wait(timeout=5)
    assert list(private_temporary_folder.glob("dijiang-*")) == []


async def test_a_process_that_has_begun_to_load_is_waited_for(config: EngineConfig) -> None:
    engine = EngineProcess(config)
    try:
        await engine.begin()
        pid = engine.pid
        assert pid is not None and psutil.pid_exists(pid)
        assert not engine.is_ready

        await engine.start()
        assert engine.is_ready and engine.pid == pid
    finally:
        await engine.stop()
    assert not psutil.pid_exists(pid)


async def test_an_engine_that_cannot_be_loaded_says_so_to_who_waits(tmp_path: Path) -> None:
    engine = EngineProcess(EngineConfig(model=tmp_path))
    try:
        await engine.begin()
        with pytest.raises(ModelLoadError):
            await engine.start()
    finally:
        await engine.stop()
