"""Leases: one contract for tasks and for durable events, with nothing of an engine but leases and one of the two."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec
import pytest
from engine_rig import T_S, Hand, Rig, needs

from mesh.engines.contract import Engine
from mesh.errors import BadRequest, LeaseLost, NotOffered
from mesh.tasks.contract import Lease, Queue, QueueInfo

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])
NEEDS = ()

QUEUE = "orders.audit"


class Source:
    """Where the leases of a test come from: tasks, or the deliveries of a durable subscription."""

    def __init__(self, rig: Rig, engine: Engine) -> None:
        self.rig = rig
        self.engine = engine
        self.patterns = ("order.*",) if "queues" not in engine.offers else ()

    async def hand(self, credit: int = 10, **said: Any) -> Hand:
        return await self.rig.hand(Queue(QUEUE, credit, patterns=self.patterns, **said))

    async def put(self, *numbers: int) -> None:
        if self.patterns:
            events = [self.rig.event(body=number) for number in numbers]
            await self.engine.events.append(events, timeout_s=T_S)
        else:
            tasks = [self.rig.task(QUEUE, number) for number in numbers]
            await self.engine.queues.defer(tasks, timeout_s=T_S)

    async def info(self) -> QueueInfo:
        return next(info for info in await self.engine.leases.queues(timeout_s=T_S) if info.name == QUEUE)


class Deliveries(Source):
    """The deliveries of an engine that has queues as well."""

    def __init__(self, rig: Rig, engine: Engine) -> None:
        super().__init__(rig, engine)
        self.patterns = ("order.*",)


def bodies(leases: Sequence[Lease]) -> list[int]:
    return [msgspec.msgpack.decode(lease.body) for lease in leases]


@pytest.fixture
async def source(rig: Rig, leased: str) -> Source:
    """Each engine with what it has: tasks, deliveries, or the one and the other (see pytest_generate_tests)."""
    return (Source if leased == "queues" else Deliveries)(rig, await rig.engine())


# --- leasing and acknowledging ------------------------------------------------------------------------------


async def test_work_is_leased_and_acknowledged(rig: Rig, source: Source) -> None:
    """In order; what is acknowledged does not come again."""
    hand = await source.hand()
    await source.put(0, 1, 2)
    leases = await hand.take(3)
    assert bodies(leases) == [0, 1, 2]
    assert [(lease.queue, lease.attempt, lease.tries) for lease in leases] == [(QUEUE, 1, 1)] * 3
    assert (await source.info()).running == 3
    await hand.done(*leases)
    assert await hand.nothing()
    info = await source.info()
    assert (info.ready, info.running, info.dead, info.done, info.workers) == (0, 0, 0, 3, 1)


async def test_a_worker_gets_no_more_than_its_prefetch(rig: Rig, source: Source) -> None:
    """And the next when it has acknowledged one; another worker gets the rest."""
    hand = await source.hand(credit=2)
    await source.put(*range(5))
    first, _ = await hand.take(2)
    assert await hand.nothing()
    await hand.done(first)
    assert bodies([await hand.one()]) == [2]
    other = await source.hand(credit=10)
    assert bodies(await other.take(2)) == [3, 4]


async def test_a_nack_with_a_delay_comes_again_after_it(rig: Rig, source: Source) -> None:
    """As another attempt of the same work."""
    hand = await source.hand()
    await source.put(7)
    lease = await hand.one()
    await hand.settle(lease, "retry", delay_s=20.0, reason="failed", error="it failed")
    await rig.pass_time(18.0)
    assert await hand.nothing()
    await rig.pass_time(4.0)
    again = await hand.one()
    assert (again.id, again.attempt, again.tries) == (lease.id, 2, 2)


async def test_released_work_counts_no_try(rig: Rig, source: Source) -> None:
    """It never started: another attempt, the same try."""
    hand = await source.hand()
    await source.put(7)
    await hand.settle(await hand.one(), "release")
    again = await hand.one()
    assert (again.attempt, again.tries) == (2, 1)


async def test_only_the_current_attempt_can_be_acknowledged(rig: Rig, source: Source) -> None:
    """A repetition changes nothing; another verdict, or an earlier attempt, is refused."""
    hand = await source.hand()
    await source.put(7)
    lease = await hand.one()
    await hand.settle(lease, "retry")
    again = await hand.one()
    for verdict in ("done", "dead"):
        with pytest.raises(LeaseLost):
            await hand.settle(lease, verdict)  # type: ignore[arg-type]
    await hand.done(again)
    await hand.done(again)
    with pytest.raises(BadRequest):
        await hand.settle(again, "done", delay_s=float("nan"))
    assert await hand.nothing()


# --- sessions -----------------------------------------------------------------------------------------------


async def test_a_session_that_ends_returns_its_leases(rig: Rig, source: Source) -> None:
    """At once; no try is counted, and no death."""
    hand = await source.hand()
    await source.put(7)
    lease = await hand.one()
    other = await source.hand()
    await hand.leave()
    again = await other.one()
    assert (again.id, again.attempt, again.tries, again.lost) == (lease.id, 2, 1, 0)


async def test_a_stopped_session_gets_nothing_new(rig: Rig, source: Source) -> None:
    """It keeps what it has, and acknowledges it."""
    hand = await source.hand()
    await source.put(0)
    lease = await hand.one()
    await hand.session.stop()
    await source.put(1)
    assert await hand.nothing()
    await hand.done(lease)
    assert bodies([await (await source.hand()).one()]) == [1]


async def test_work_of_a_dead_worker_comes_again_and_is_given_up_in_the_end(rig: Rig, source: Source) -> None:
    """After as many deaths as the queue allows it is a dead letter."""
    await (await source.hand(most_lost=2)).leave()
    await source.put(7)
    for lost in range(2):
        hand = await source.hand(most_lost=2)
        assert (await hand.one()).lost == lost
        await rig.kill(hand.engine)
        await rig.pass_time(rig.lease_s * 1.5)

    async def buried() -> bool:
        return (await source.info()).dead == 1

    await rig.eventually(buried, "it is given up")
    [letter] = await source.engine.leases.dead(QUEUE, timeout_s=T_S)
    assert (letter.reason, letter.lost, letter.status) == ("lost", 2, "dead")


# --- dead letters -------------------------------------------------------------------------------------------


async def test_dead_letters_are_listed_requeued_and_dropped(rig: Rig, source: Source) -> None:
    """By queue, oldest first, a page at a time."""
    hand = await source.hand()
    await source.put(0, 1, 2)
    for lease in await hand.take(3):
        await hand.dead(lease, f"no {lease.attempt}")
    leases = source.engine.leases
    letters = await leases.dead(QUEUE, timeout_s=T_S)
    assert [msgspec.msgpack.decode(letter.body) for letter in letters] == [0, 1, 2]
    assert {(letter.reason, letter.error, letter.attempt) for letter in letters} == {("failed", "no 1", 1)}
    assert await leases.dead(QUEUE, limit=2, timeout_s=T_S) == letters[:2]
    assert await leases.dead(QUEUE, after=letters[1].id, timeout_s=T_S) == letters[2:]
    assert await leases.dead("orders.other", timeout_s=T_S) == []
    assert await leases.requeue(QUEUE, timeout_s=T_S) == 3
    again = await hand.take(3)
    assert [(lease.attempt, lease.tries) for lease in again] == [(2, 1)] * 3
    for lease in again:
        await hand.dead(lease)
    assert await leases.drop(QUEUE, timeout_s=T_S) == 3
    assert await leases.dead(QUEUE, timeout_s=T_S) == []
    assert await hand.nothing()


# --- what an engine does not offer --------------------------------------------------------------------------


def uses_of(rig: Rig) -> dict[str, tuple[str, Callable[[Engine], Awaitable[object]]]]:
    """A use of each capability, by the attribute or the field that needs it."""

    def defer(**fields: Any) -> Callable[[Engine], Awaitable[object]]:
        # A task that waits is deferred after the one that feeds it.
        feeding = [rig.task("mail.send")] if fields.get("waits") else []
        task = rig.task("mail.send", **fields)
        tasks = [*(msgspec.structs.replace(each, feeds=task.id) for each in feeding), task]

        async def use(engine: Engine) -> object:
            return await engine.queues.defer(tasks, timeout_s=T_S)

        return use

    def subscribe(**said: Any) -> Callable[[Engine], Awaitable[object]]:
        async def use(engine: Engine) -> object:
            return await rig.hand(Queue("mail.send", 1, **said), engine=engine)

        return use

    async def commit(engine: Engine) -> object:
        return await engine.commit(rig.unit(tasks=[rig.task()], events=[rig.event()]), timeout_s=T_S)

    return {
        "a task": ("queues", defer()),
        "a queue": ("queues", subscribe()),
        "a key": ("jobs", defer(key="k")),
        "an ordering key": ("flows", defer(order="o")),
        "a chain": ("flows", defer(waits=1)),
        "a rate": ("quotas", subscribe(rate_per_s=1.0)),
        "a concurrency": ("quotas", subscribe(concurrency=1)),
        "a durable subscription": ("events", subscribe(patterns=("order.*",))),
        "a job by its id": ("jobs", lambda engine: engine.jobs.find("x", timeout_s=T_S)),
        "a dead letter by its id": ("jobs", lambda engine: engine.leases.requeue("mail.send", ["x"], timeout_s=T_S)),
        "an event": ("events", lambda engine: engine.events.append([rig.event()], timeout_s=T_S)),
        "state": ("state", lambda engine: engine.state.get("carts", ["a"], timeout_s=T_S)),
        "a schedule": ("schedules", lambda engine: engine.schedules.schedules(timeout_s=T_S)),
        "a lock": ("locks", lambda engine: engine.locks.locks(timeout_s=T_S)),
        "a unit": ("atomic", commit),
    }


async def test_what_an_engine_does_not_offer_is_refused_by_name(rig: Rig) -> None:
    """Every use of a missing capability is NotOffered with its name; none of an offered one is."""
    for what, (capability, use) in uses_of(rig).items():
        engine = await rig.engine()
        offered = capability in engine.offers or (capability == "atomic" and {"queues", "events"} <= engine.together)
        # The task that a key or a chain belongs to needs queues, a rate needs something that is leased.
        needed = {capability}
        if capability in ("jobs", "flows", "quotas") and "queues" not in engine.offers:
            needed.add("queues")
        if not engine.offers & {"queues", "events"}:
            # An engine with neither has no leases at all.
            needed.add("queues")
        if offered:
            await use(engine)
            continue
        with pytest.raises(NotOffered) as caught:
            await use(engine)
        assert caught.value.details["engine"] == engine.name, what
        assert caught.value.details["capability"] in needed, what


@needs("queues")
@pytest.mark.parametrize(
    "fields",
    [
        {"keep_s": float("nan")},
        {"delay_s": float("nan")},
        {"due_at": float("inf")},
        {"timeout_s": -1.0},
        {"key": "k" * 1025},
        {"order": "o" * 1025},
        {"priority": 10},
        {"queue": "noservice"},
        {"id": "x" * 1025},
    ],
)
async def test_every_engine_refuses_the_same_tasks(rig: Rig, fields: dict[str, Any]) -> None:
    """With the same code; nothing is enqueued."""
    engine = await rig.engine()
    bad = msgspec.structs.replace(rig.task("mail.send"), **fields)
    with pytest.raises(BadRequest) as caught:
        await engine.queues.defer([rig.task("mail.send"), bad], timeout_s=T_S)
    assert caught.value.code == "bad_request"
    assert await (await rig.hand("mail.send")).nothing()
