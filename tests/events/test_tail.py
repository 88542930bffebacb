"""The end of the log: every event once and in order, whatever happens between; one poll for all."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

from mesh.clock import LoopClock
from mesh.errors import BadRequest, Forbidden, Unavailable
from mesh.events.log import LoggedEvent, NewEvent
from mesh.events.tail import BACKLOG, PAGE, Tail
from mesh.events.topics import matches
from mesh.testing import Mesh, no_leaks
from tests.patience import until

pytestmark = pytest.mark.timeout(60)


class Log:
    """A log in memory that counts its readers, fails on demand, and takes a moment for each read."""

    def __init__(self) -> None:
        self.events: list[LoggedEvent] = []
        self.reads = 0
        self.down = False
        self.allowed: set[str] | None = None

    def append(self, topic: str, count: int = 1) -> None:
        for _ in range(count):
            offset = 10 + 3 * len(self.events)
            self.events.append(LoggedEvent(offset, NewEvent(str(offset), topic, b"\xc0")))

    async def read(self, pattern: str, *, after: int = 0, limit: int = 100, timeout_s: float) -> list[LoggedEvent]:
        self.reads += 1
        if self.allowed is not None and pattern not in self.allowed:
            raise Forbidden(pattern)
        await asyncio.sleep(random.random() / 500)
        if self.down:
            raise Unavailable("down")
        return [each for each in self.events if each.offset > after and matches(pattern, each.event.topic)][:limit]

    async def last(self, *, timeout_s: float) -> int:
        if self.down:
            raise Unavailable("down")
        return self.events[-1].offset if self.events else 0


@pytest.fixture
async def log() -> AsyncIterator[Log]:
    async with no_leaks():
        yield Log()


@pytest.fixture
async def tail(log: Log) -> AsyncIterator[Tail]:
    tail = Tail(lambda: log, LoopClock(), 1.0)  # type: ignore[arg-type, return-value]
    yield tail
    await tail.close()


async def take(items: AsyncIterator[LoggedEvent], count: int) -> list[int]:
    return [(await anext(items)).offset for _ in range(count)]


def offsets(log: Log, pattern: str) -> list[int]:
    return [each.offset for each in log.events if matches(pattern, each.event.topic)]


async def test_from_an_offset_from_the_beginning_and_from_now_on(log: Log, tail: Tail):
    log.append("a.1", 5)
    log.append("b.1", 5)
    log.append("a.2", PAGE + 10)
    everything = tail.follow("a.#", 0)
    assert await take(everything, PAGE + 15) == offsets(log, "a.#")
    later = tail.follow("a.#", log.events[2].offset)
    assert await take(later, 2) == [log.events[3].offset, log.events[4].offset]
    new = tail.follow("a.*", None)
    first = asyncio.create_task(anext(new))
    await until(lambda: len(tail._followers) == 3)
    log.append("b.2")
    log.append("a.9")
    assert (await first).offset == log.events[-1].offset
    assert await take(everything, 1) == [log.events[-1].offset]
    for each in (everything, later, new):
        await each.aclose()


async def test_one_poll_serves_all(log: Log, tail: Tail):
    followers = [tail.follow(f"order.{n}.#", 0) for n in range(200)]
    waiting = [asyncio.create_task(anext(each)) for each in followers]
    await until(lambda: len(tail._followers) == 200)
    await asyncio.sleep(0.3)
    before = log.reads
    for n in range(200):
        log.append(f"order.{n}.paid")
    assert [(await each).offset for each in waiting] == [each.offset for each in log.events]
    assert log.reads - before < 20
    for each in followers:
        await each.aclose()
    await until(lambda: tail._task is None)


async def test_nothing_is_lost_or_doubled_while_followers_come_and_go(log: Log, tail: Tail):
    """Appends, new followers of other topics, breaks of the log and slow followers, at random."""
    topics = ["a.x", "a.y", "b.x", "c.1.2"]
    patterns = ["a.#", "b.*", "#", "a.x", "c.#"]
    done = False

    async def write() -> None:
        for _ in range(600):
            log.append(random.choice(topics), random.randrange(4))
            log.down = random.random() < 0.05
            await asyncio.sleep(0.002)
        log.down = False

    async def follow(pattern: str, begin: float) -> tuple[str, int, list[int]]:
        await asyncio.sleep(begin)
        after = random.choice([0, log.events[-1].offset if log.events else 0])
        seen: list[int] = []
        async for logged in tail.follow(pattern, after):
            if logged.event.topic == "end.end":
                break
            if matches(pattern, logged.event.topic):
                seen.append(logged.offset)
            if random.random() < 0.01:
                await asyncio.sleep(0.05)
            if done and seen and seen[-1] == offsets(log, pattern)[-1]:
                break
        return pattern, after, seen

    writing = asyncio.create_task(write())
    following = [asyncio.create_task(follow(random.choice(patterns), random.random())) for _ in range(25)]
    await writing
    done = True
    for topic in topics:
        log.append(topic)
    for task in following:
        pattern, after, seen = await task
        assert seen == [each for each in offsets(log, pattern) if each > after]


async def test_a_follower_that_is_too_slow_reads_the_log_again(log: Log, tail: Tail):
    items = tail.follow("a", 0)
    log.append("a")
    assert len(await take(items, 1)) == 1
    await asyncio.sleep(0.2)
    for _ in range(3):
        log.append("a", BACKLOG)
        await asyncio.sleep(0.25)
    (follower,) = tail._followers
    assert len(follower.queue) <= BACKLOG
    assert await take(items, 3 * BACKLOG) == offsets(log, "a")[1:]
    await items.aclose()


async def test_topics_that_access_allows_one_by_one(log: Log, tail: Tail):
    log.allowed = {"a.1", "b.1"}
    one, two = tail.follow("a.1", 0), tail.follow("b.1", 0)
    waiting = [asyncio.create_task(anext(each)) for each in (one, two)]
    await until(lambda: len(tail._followers) == 2)
    await asyncio.sleep(0.3)
    log.append("a.1")
    log.append("b.1")
    assert [(await each).offset for each in waiting] == [10, 13]
    with pytest.raises(Forbidden):
        await anext(tail.follow("c.1", 0))
    with pytest.raises(BadRequest):
        await anext(tail.follow("a..b", 0))
    for each in (one, two):
        await each.aclose()


async def test_the_verb_of_services_and_nodes():
    async with Mesh() as m:
        await m.node.emit("order.1.created", {"x": 1}, durable=True, key="k")
        events = m.node.tail("order.#", after=0)
        event = await anext(events)
        assert (event.topic, event.data, event.key) == ("order.1.created", {"x": 1}, "k")
        assert event.id
        waiting = asyncio.create_task(anext(events))
        await m.node.emit("order.2.created", 2, durable=True)
        following: Any = await waiting
        assert following.offset > event.offset
        await events.aclose()  # type: ignore[attr-defined]
