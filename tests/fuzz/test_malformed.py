"""Whatever is wrong with a request, it is refused in JSON, and hurts nobody."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e.server_process import ServerProcess, metrics
from tests.fuzz import generate
from tests.fuzz.attack import Attack
from tests.fuzz.kinds import all_kinds

NUM_GENERATED = 2000
GOLDEN_EVERY = 50


@pytest.fixture(scope="module")
def server(tiny_model: Path) -> Iterator[ServerProcess]:
    with ServerProcess(tiny_model, "--max-slots", "4") as process:
        process.wait_ready()
        yield process
        assert process.process.poll() is None
        assert "Traceback" not in process.text


@pytest.fixture
async def attack(server: ServerProcess) -> AsyncIterator[Attack]:
    attack = Attack(server.wait_ready())
    await attack.begin()
    engine = server.engine.pid
    yield attack
    attack.close()
    with httpx.Client(base_url=server.wait_ready(), timeout=30) as http:
        now = metrics(http)
    assert now["dijiang_engine_restarts"] == 0
    assert now["dijiang_state_slots_used"] == 0
    assert server.engine.pid == engine


async def test_every_known_kind_is_refused_and_the_next_request_answered(attack: Attack) -> None:
    kinds = all_kinds()
    assert len(kinds) >= 300
    for name, data in kinds.items():
        await attack.send(name, data)
        await attack.check_golden(name)
    assert attack.wrong == []


async def test_generated_requests_are_refused(attack: Attack) -> None:
    for number in range(NUM_GENERATED):
        await attack.send(str(number), generate.request(number))
        if number % GOLDEN_EVERY == 0:
            await attack.check_golden(str(number))
    assert attack.wrong == []


def test_a_number_is_one_request() -> None:
    assert generate.request(7) == generate.request(7)
    assert len({generate.request(number) for number in range(200)}) > 150
