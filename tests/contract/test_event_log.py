"""Durable events: what every engine promises of the log, and of subscriptions that each have a position in it."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from engine_events import append, bodies, outstanding, subscriber, subscription, topics
from engine_rig import T_S, Hand, Rig, needs, over_processes

from mesh.engines.contract import Engine
from mesh.errors import BadRequest
from mesh.events.log import LoggedEvent
from mesh.protocol.messages import RAW

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])
NEEDS = ("events",)


@pytest.fixture
async def engine(rig: Rig) -> Engine:
    return await rig.engine()


# --- appending and reading ----------------------------------------------------------------------------------


async def test_what_was_appended_is_read(rig: Rig, engine: Engine) -> None:
    """With everything that the publisher gave, in the order of the offsets, by any process."""
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    first = rig.event(body={"id": 7}, key="o7", publisher="shop-1", trace=trace, meta={"tenant": "t1"})
    raw = msgspec.structs.replace(rig.event("order.paid"), body=b"\x00\xff", encoding=RAW)
    offsets = await append(engine, first, raw)
    assert offsets == sorted(set(offsets))
    assert offsets[0] > 0
    read = await (await rig.engine()).events.read("#", timeout_s=T_S)
    assert read == [LoggedEvent(offsets[0], first), LoggedEvent(offsets[1], raw)]


async def test_offsets_only_grow(rig: Rig, engine: Engine) -> None:
    """Over all topics and publishers together."""
    other = await rig.engine()
    seen: list[int] = []
    for number in range(10):
        seen += await append((engine, other)[number % 2], rig.event(f"topic.{number}"), rig.event("order.created"))
    assert seen == sorted(set(seen))


async def test_an_append_that_is_repeated_adds_nothing(rig: Rig, engine: Engine) -> None:
    """A publisher that got no answer says it again with the same ids, and gets the same offsets."""
    hand = await subscriber(rig, "order.*")
    events = [rig.event(), rig.event()]
    offsets = await append(engine, *events)
    assert await append(engine, *events) == offsets
    await hand.run(2)
    assert await hand.nothing()
    assert len(await engine.events.read("#", timeout_s=T_S)) == 2
    assert await append(engine) == []


async def test_a_bad_topic_refuses_the_append(rig: Rig, engine: Engine) -> None:
    """All of it: nothing is in the log."""
    with pytest.raises(BadRequest):
        await append(engine, rig.event(), rig.event("order..created"))
    with pytest.raises(BadRequest):
        await append(engine, rig.event("order.*"))
    assert await engine.events.read("#", timeout_s=T_S) == []


async def test_the_log_is_read_by_pattern_and_page(rig: Rig, engine: Engine) -> None:
    """Patterns mean what they mean for every subscriber; a page goes on after an offset, whatever is between."""
    names = ["order.created", "order.paid", "order.item.added", "user.created", "order"]
    events = [rig.event(names[number % 5], number) for number in range(50)]
    offsets = await append(engine, *events)

    async def numbers(pattern: str, limit: int) -> list[int]:
        found: list[LoggedEvent] = []
        while True:
            after = found[-1].offset if found else 0
            page = await engine.events.read(pattern, after=after, limit=limit, timeout_s=T_S)
            assert len(page) <= limit
            if not page:
                return [offsets.index(each.offset) for each in found]
            found += page

    assert await numbers("order.*", 7) == [number for number in range(50) if number % 5 in (0, 1)]
    assert await numbers("order.#", 100) == [number for number in range(50) if number % 5 != 3]
    assert await numbers("*.created", 1) == [number for number in range(50) if number % 5 in (0, 3)]
    assert await numbers("nothing.*", 10) == []


@over_processes
async def test_the_log_outlives_a_restart(rig: Rig, engine: Engine) -> None:
    """Events, offsets and positions; what is appended later comes later."""
    hand = await subscriber(rig, "order.*")
    offsets = await append(engine, *(rig.event(body=number) for number in range(3)))
    assert bodies(await hand.run(2)) == [0, 1]
    await hand.leave()
    before = await engine.events.read("#", timeout_s=T_S)
    await rig.restart()
    assert await engine.events.read("#", timeout_s=T_S) == before
    [later] = await append(engine, rig.event(body=3))
    assert later > offsets[-1]
    hand = await subscriber(rig, "order.*")
    assert bodies(await hand.run(2)) == [2, 3]
    assert await hand.nothing()


# --- delivering ---------------------------------------------------------------------------------------------


async def test_a_subscriber_gets_what_matches(rig: Rig, engine: Engine) -> None:
    """As leases of its queue, with the event in them."""
    hand = await subscriber(rig, "order.*", "user.created")
    event = rig.event("order.created", {"id": 7}, key="o7", meta={"a": "b"})
    [offset, *_] = await append(engine, event, rig.event("order.item.added"), rig.event("user.created"))
    lease, other = await hand.take(2)
    assert (lease.queue, lease.topic, lease.event, lease.offset) == ("orders.audit", event.topic, event.id, offset)
    assert (lease.body, lease.encoding, lease.at, lease.meta) == (event.body, event.encoding, event.at, {"a": "b"})
    assert (lease.key, lease.attempt, lease.tries) == ("o7", 1, 1)
    assert other.topic == "user.created"
    assert await hand.nothing()


async def test_two_patterns_that_match_are_one_delivery(rig: Rig, engine: Engine) -> None:
    """A subscription gets an event once."""
    hand = await subscriber(rig, "order.*", "#", "*.created")
    await append(engine, rig.event())
    await hand.run(1)
    assert await hand.nothing()


async def test_each_subscription_gets_its_own(rig: Rig, engine: Engine) -> None:
    """Two services get every event each; two workers of one service share them."""
    audit = [await subscriber(rig, "order.*", credit=5) for _ in range(2)]
    mail = await subscriber(rig, "order.*", name="mail.confirm")
    await append(engine, *(rig.event(body=number) for number in range(10)))
    assert bodies(await mail.run(10)) == list(range(10))
    await rig.eventually(lambda: sum(len(hand.holding) for hand in audit) == 10, "all are given out")
    assert all(hand.holding for hand in audit)
    shared = [lease for hand in audit for lease in hand.holding.values()]
    assert sorted(bodies(shared)) == list(range(10))  # type: ignore[type-var]


async def test_a_new_subscription_begins_now(rig: Rig, engine: Engine) -> None:
    """Unless it asks for all that is kept."""
    await append(engine, *(rig.event(body=number) for number in range(3)))
    new = await subscriber(rig, "order.*", name="a.new", start="new")
    every = await subscriber(rig, "order.*", name="a.all", start="all")
    assert await new.nothing()
    await append(engine, rig.event(body=3))
    assert bodies(await new.run(1)) == [3]
    assert bodies(await every.run(4)) == [0, 1, 2, 3]
    assert await new.nothing()
    assert await every.nothing()


@pytest.mark.parametrize("start", ["new", "all"])
async def test_a_known_subscription_goes_on_where_it_was(rig: Rig, engine: Engine, start: str) -> None:
    """However it says that it would start: what it missed while it was down it gets, and nothing twice."""
    hand = await subscriber(rig, "order.*", start=start)
    await append(engine, *(rig.event(body=number) for number in range(2)))
    await hand.run(2)
    await hand.leave()
    await append(engine, *(rig.event(body=number) for number in range(2, 40)))
    hand = await subscriber(rig, "order.*", start=start)
    assert bodies(await hand.run(38)) == list(range(2, 40))
    assert await hand.nothing()


async def test_a_subscriber_that_was_down_for_days_catches_up(rig: Rig, engine: Engine) -> None:
    """With everything that came meanwhile, in the order of the log."""
    hand = await subscriber(rig, "order.*", credit=16)
    await hand.leave()
    for day in range(3):
        events = [rig.event(body=(day, number), key=f"k{number % 7}") for number in range(400)]
        await append(engine, *events)
        await rig.leap(86400.0)
    assert await outstanding(engine) == 1200
    hand = await subscriber(rig, "order.*", credit=16)
    got: list[list[int]] = []
    while len(got) < 1200:
        await rig.eventually(lambda: hand.holding, "the next deliveries")
        leases = await hand.take(len(hand.holding))
        await hand.done(*leases)
        got += bodies(leases)  # type: ignore[arg-type]
    assert await hand.nothing()
    assert sorted(got) == [[day, number] for day in range(3) for number in range(400)]
    for key in range(7):
        of_key = [each for each in got if each[1] % 7 == key]
        assert of_key == sorted(of_key)
    assert await outstanding(engine) == 0


async def test_other_patterns_hold_from_then_on(rig: Rig, engine: Engine) -> None:
    """A newer release listens to something else: events after its coming are chosen by what it says."""
    old = await subscriber(rig, "order.*")
    await append(engine, rig.event("order.created"), rig.event("user.created"))
    assert topics(await old.run(1)) == ["order.created"]
    await old.leave()
    new = await subscriber(rig, "user.*")
    await append(engine, rig.event("order.created"), rig.event("user.renamed"))
    leases = await new.run(1)
    assert topics(leases) == ["user.renamed"]
    assert await new.nothing()


# --- order --------------------------------------------------------------------------------------------------


async def test_events_of_one_key_come_one_after_the_other(rig: Rig, engine: Engine) -> None:
    """In the order of the log, each when the one before is settled, over all workers; other keys do not wait."""
    hands = [await subscriber(rig, "order.*") for _ in range(2)]
    await append(engine, *(rig.event(body=(key, number), key=key) for number in range(4) for key in "ab"))
    ran: dict[str, list[int]] = {"a": [], "b": []}
    while sum(map(len, ran.values())) < 8:
        await rig.eventually(lambda: any(hand.holding for hand in hands), "the next of a key")
        await rig.quiet()
        held = [lease.key for hand in hands for lease in hand.holding.values()]
        assert len(held) == len(set(held)), "two of one key run"
        assert set(held) == {key for key in "ab" if len(ran[key]) < 4}
        hand = next(hand for hand in hands if hand.holding)
        [lease] = await hand.run(1)
        key, number = msgspec.msgpack.decode(lease.body, type=tuple[str, int])
        ran[key].append(number)
    assert ran == {"a": [0, 1, 2, 3], "b": [0, 1, 2, 3]}


async def test_a_failing_delivery_holds_up_its_key_until_it_is_dead(rig: Rig, engine: Engine) -> None:
    """Through its retries; then the next of its key goes on, and the dead one is kept."""
    hand = await subscriber(rig, "order.*")
    await append(engine, rig.event(body=1, key="k"), rig.event(body=2, key="k"), rig.event(body=3))
    leases = await hand.take(2)
    assert sorted(bodies(leases)) == [1, 3]  # type: ignore[type-var]
    first = next(lease for lease in leases if lease.key)
    await hand.retry(first, after_s=20.0)
    assert await hand.nothing()
    await rig.pass_time(21.0)
    again = await hand.one()
    assert (again.offset, again.tries) == (first.offset, 2)
    await hand.dead(again, "no such customer")
    assert bodies([await hand.one()]) == [2]
    [info] = await engine.leases.dead("orders.audit", timeout_s=T_S)
    assert (info.topic, info.event, info.offset) == (first.topic, first.event, first.offset)
    assert (info.error, info.reason, info.body) == ("no such customer", "failed", first.body)


async def test_a_dead_delivery_runs_again_when_somebody_wants_it(rig: Rig, engine: Engine) -> None:
    """As any dead letter."""
    hand = await subscriber(rig, "order.*")
    await append(engine, rig.event(body=1, key="k"), rig.event(body=2, key="k"))
    await hand.dead(await hand.one())
    await hand.done(await hand.one())
    assert await engine.leases.requeue("orders.audit", timeout_s=T_S) == 1
    lease = await hand.one()
    assert (bodies([lease]), lease.topic) == ([1], "order.created")
    await hand.done(lease)
    assert await engine.leases.dead("orders.audit", timeout_s=T_S) == []


async def test_a_dead_delivery_may_be_dropped(rig: Rig, engine: Engine) -> None:
    """As any dead letter; the event stays in the log."""
    hand = await subscriber(rig, "order.*")
    await append(engine, rig.event())
    await hand.dead(await hand.one())
    assert await engine.leases.drop("orders.audit", timeout_s=T_S) == 1
    assert len(await engine.events.read("#", timeout_s=T_S)) == 1
    assert await hand.nothing()


async def test_a_delivery_whose_worker_dies_comes_again(rig: Rig, engine: Engine) -> None:
    """As any lease; the key waits meanwhile."""
    hand = await subscriber(rig, "order.*")
    await append(engine, rig.event(body=1, key="k"), rig.event(body=2, key="k"))
    first = await hand.one()
    await rig.kill(hand.engine)
    if rig.longest_s:
        await rig.pass_time(rig.lease_s * 1.5)
    other = await subscriber(rig, "order.*")
    again = await other.one()
    assert (again.offset, again.lost, again.attempt) == (first.offset, 1, 2)
    assert await other.nothing()
    await other.done(again)
    assert bodies(await other.run(1)) == [2]


@needs("events", "jobs")
async def test_a_delivery_can_be_looked_at_and_cancelled(rig: Rig, engine: Engine) -> None:
    """It is a job like every other; the next of its key goes on."""
    hand = await subscriber(rig, "order.*")
    await append(engine, rig.event(body=1, key="k"), rig.event(body=2, key="k"))
    lease = await hand.one()
    info = await engine.jobs.find(lease.id, timeout_s=T_S)
    assert info is not None
    assert (info.status, info.topic, info.offset, info.order) == ("running", "order.created", lease.offset, "k")
    await engine.jobs.cancel(lease.id, timeout_s=T_S)
    await rig.eventually(lambda: hand.cancels, "the worker is told")
    await hand.settle(lease, "cancelled")
    assert bodies([await hand.one()]) == [2]


@needs("events", "quotas")
async def test_limits_hold_for_deliveries_too(rig: Rig, engine: Engine) -> None:
    """Credit and concurrency, as for tasks."""
    hand = await subscriber(rig, "order.*", credit=5, concurrency=2)
    await append(engine, *(rig.event(body=number) for number in range(6)))
    for _ in range(3):
        leases = await hand.take(2)
        assert await hand.nothing()
        await hand.done(*leases)


async def test_a_subscription_says_how_far_it_is(rig: Rig, engine: Engine) -> None:
    """Its topics, its position, and what is outstanding; also when nobody is attached."""
    hand = await subscriber(rig, "order.*")
    offsets = await append(engine, *(rig.event(body=number) for number in range(5)))
    await hand.run(3)
    info = await subscription(engine)
    assert (info.patterns, info.workers) == (("order.*",), 1)
    assert await outstanding(engine) == 2
    await hand.run(2)
    await hand.leave()
    await append(engine, rig.event("user.created"))

    async def caught_up() -> bool:
        info = await subscription(engine)
        return info.position >= offsets[-1] and await outstanding(engine) == 0

    await rig.eventually(caught_up, "it has seen everything")


# --- many at once -------------------------------------------------------------------------------------------


@over_processes
async def test_publishers_and_subscribers_at_once(rig: Rig, engine: Engine) -> None:
    """While many append, nothing is missed, nothing is doubled, and each key is in order."""
    hands = [await subscriber(rig, "order.*", credit=8) for _ in range(2)]
    publishers = [await rig.engine() for _ in range(3)]
    orders: dict[str, list[int]] = {}

    async def publish(publisher: Engine, number: int) -> None:
        for round_number in range(20):
            events = [rig.event(body=(number, key, round_number), key=f"{number}-{key}") for key in range(3)]
            await append(publisher, *events)

    async def consume(hand: Hand) -> None:
        while sum(map(len, orders.values())) < 180:
            await rig.quiet()
            leases = await hand.take(len(hand.holding))
            for lease in leases:
                number, key, round_number = msgspec.msgpack.decode(lease.body, type=tuple[int, int, int])
                orders.setdefault(f"{number}-{key}", []).append(round_number)
            if leases:
                await hand.done(*leases)

    async with asyncio.timeout(60):
        publishing = [publish(publisher, number) for number, publisher in enumerate(publishers)]
        await asyncio.gather(*publishing, *(consume(hand) for hand in hands))
    assert all(rounds == list(range(20)) for rounds in orders.values())
    assert len(orders) == 9
