"""The places of a key, counted here or asked for."""

import asyncio

import pytest

from server.key_places import LocalKeyPlaces
from server.workers.key_places import HostedKeyPlaces
from server.workers.messages import GiveBackPlace, Place, TakePlace, WorkerMessage


def test_each_key_has_its_own_places() -> None:
    places = LocalKeyPlaces(2)
    assert [places.take_now(key) for key in "aab"] == [None] * 3
    assert places.take_now("a") is not None
    places.give_back("a", 3.0)
    assert places.take_now("a") is None
    assert places.take_now("b") is None
    places.forget("b")
    assert places.take_now("b") is None
    assert places.take_now("b") is not None


def test_when_to_come_back_follows_from_how_long_requests_take() -> None:
    places = LocalKeyPlaces(4)
    for _ in range(100):
        places.take_now("a")
        places.give_back("a", 20.0)
    for _ in range(4):
        places.take_now("a")
    assert places.take_now("a") == pytest.approx(20.0 / 4, rel=0.01)


async def test_answers_belong_to_questions_in_their_order() -> None:
    said: list[WorkerMessage] = []
    places = HostedKeyPlaces(said.append)
    asked = [asyncio.create_task(places.take(key)) for key in "ab"]
    await asyncio.sleep(0)
    assert said == [TakePlace("a"), TakePlace("b")]
    places.on_answer(Place(None))
    places.on_answer(Place(2.5))
    assert await asyncio.gather(*asked) == [None, 2.5]


async def test_a_place_that_nobody_waits_for_any_more_is_given_back() -> None:
    said: list[WorkerMessage] = []
    places = HostedKeyPlaces(said.append)
    asked = [asyncio.create_task(places.take(key)) for key in "abc"]
    await asyncio.sleep(0)
    for task in asked[:2]:
        task.cancel()
    await asyncio.gather(*asked[:2], return_exceptions=True)
    places.on_answer(Place(None))
    places.on_answer(Place(1.0))
    places.on_answer(Place(None))
    assert await asked[2] is None
    assert said[3:] == [GiveBackPlace("a", 0.0)]
