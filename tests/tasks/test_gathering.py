"""What one tick asks for goes out as one request."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from time import perf_counter

import pytest

from mesh.errors import BadRequest, TryLater, Unavailable
from mesh.tasks.gathering import MOST_BYTES, MOST_ITEMS, Gathering

WHO: ContextVar[str] = ContextVar("who", default="nobody")


class Engine:
    """Takes lists of texts; "bad" is refused, and all that comes with it."""

    def __init__(self) -> None:
        self.requests: list[list[str]] = []
        self.error: Exception | None = None
        self.hold: asyncio.Future[None] | None = None
        self.seen: list[str] = []

    async def send(self, items):
        self.requests.append(list(items))
        self.seen.append(WHO.get())
        if self.hold is not None:
            await self.hold
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        if "bad" in items:
            raise BadRequest("bad is bad")
        return [item.upper() for item in items]


@pytest.fixture
async def engine():
    return Engine()


@pytest.fixture
async def gathering(engine):
    made = Gathering(engine.send, halves=True)
    yield made
    await made.close()


async def ask(gathering, *items, size=10):
    """The answers and errors, in order."""
    futures = []
    for item in items:
        future = asyncio.get_running_loop().create_future()
        gathering.add(item, size, future.set_result)
        futures.append(future)
    return await asyncio.gather(*futures)


async def test_a_tick_is_one_request(engine, gathering):
    """Each gets its own answer; the next tick is another request."""
    assert await ask(gathering, "a", "b", "c") == ["A", "B", "C"]
    assert await ask(gathering, "d") == ["D"]
    assert engine.requests == [["a", "b", "c"], ["d"]]
    assert len(gathering) == 0


async def test_a_long_tick_is_sent_in_parts(engine, gathering):
    """By number and by size; nothing is lost between the parts."""
    names = [str(number) for number in range(2 * MOST_ITEMS + 5)]
    assert await ask(gathering, *names) == names
    assert [len(request) for request in engine.requests] == [MOST_ITEMS, MOST_ITEMS, 5]
    engine.requests.clear()
    await ask(gathering, "a", "b", "c", size=MOST_BYTES // 2)
    assert engine.requests == [["a", "b"], ["c"]]


async def test_a_crowd_goes_in_halves_and_everybody_is_answered(engine, gathering):
    """Once it is known to be quick: two requests, and the order of the answers is kept. Joined again, nobody waits."""
    names = [str(number) for number in range(100)]
    gathering._pace.share(100, 0, perf_counter())
    gathering._pace.halves = True
    assert await ask(gathering, *names) == names
    assert [len(request) for request in engine.requests] == [50, 50]
    gathering._pace.halves = False
    gathering._pace.joining = True
    engine.hold = asyncio.get_running_loop().create_future()
    first = asyncio.ensure_future(ask(gathering, "x", *["y"] * 49))
    await asyncio.sleep(0)
    second = asyncio.ensure_future(ask(gathering, *names))
    await asyncio.sleep(0)
    engine.hold.set_result(None)
    assert (await first)[0] == "X"
    assert await second == names


async def test_one_that_is_wrong_harms_nobody_else(engine, gathering):
    """All were refused for it; each is asked for alone, and only the wrong one fails."""
    a, bad, c = await ask(gathering, "a", "bad", "c")
    assert (a, c) == ("A", "C")
    assert isinstance(bad, BadRequest)
    assert engine.requests == [["a", "bad", "c"], ["a"], ["bad"], ["c"]]


async def test_an_engine_that_is_away_is_everybody_s_error(engine, gathering):
    """Each has a copy: an exception that is raised in many places would collect all their tracebacks."""
    engine.error = TryLater("away", details={"x": 1})
    a, b = await ask(gathering, "a", "b")
    assert isinstance(a, TryLater)
    assert a is not b
    assert (b.message, b.details) == ("away", {"x": 1})
    assert len(engine.requests) == 1


async def test_nothing_of_one_asker_surrounds_the_request(engine, gathering):
    """A deadline, a trace or a block of whoever came first does not hold for the others."""
    WHO.set("somebody")
    await ask(gathering, *["a"] * (MOST_ITEMS + 1))
    assert engine.seen == ["nobody", "nobody"]


async def test_closing_ends_everything_with_an_error(engine, gathering):
    """What is under way, and what comes later."""
    engine.hold = asyncio.get_running_loop().create_future()
    asking = asyncio.ensure_future(ask(gathering, "a"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(gathering) == 1
    await gathering.close()
    (late,) = await ask(gathering, "b")
    (held,) = await asking
    assert isinstance(held, Unavailable)
    assert isinstance(late, Unavailable)
