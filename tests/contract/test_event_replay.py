"""Durable events: what every engine promises of delivering them again, and of keeping them."""

from __future__ import annotations

import pytest
from engine_events import append, bodies, subscriber
from engine_rig import T_S, Rig, needs

from mesh.engines.contract import Engine
from mesh.errors import BadRequest, LeaseLost

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])
NEEDS = ("events",)


@pytest.fixture
async def engine(rig: Rig) -> Engine:
    return await rig.engine()


# --- replaying ----------------------------------------------------------------------------------------------


async def replay(engine: Engine, name: str = "orders.audit", **where: float | int) -> int:
    return await engine.events.replay(name, timeout_s=T_S, **where)  # type: ignore[arg-type]


async def test_a_replay_from_an_offset_delivers_again(rig: Rig, engine: Engine) -> None:
    """What stands in the log from there on and matches, in order, to this subscription alone."""
    hand = await subscriber(rig, "order.*")
    other = await subscriber(rig, "order.*", name="mail.confirm")
    offsets = await append(engine, *(rig.event(body=number, key="k") for number in range(6)), rig.event("user.x"))
    await hand.run(6)
    await other.run(6)
    assert await replay(engine, offset=offsets[2]) == 4
    again = await hand.run(4)
    assert [lease.offset for lease in again] == offsets[2:6]
    assert bodies(again) == [2, 3, 4, 5]
    assert await hand.nothing()
    assert await other.nothing()


async def test_a_replay_from_an_instant_delivers_again(rig: Rig, engine: Engine) -> None:
    """What was appended at or after it."""
    hand = await subscriber(rig, "order.*")
    instants = []
    for number in range(5):
        instants.append(rig.clock.wall())
        await append(engine, rig.event(body=number))
        await rig.pass_time(1.0)
    await hand.run(5)
    assert await replay(engine, since_at=instants[2]) == 3
    assert bodies(await hand.run(3)) == [2, 3, 4]
    assert await replay(engine, since_at=instants[3] + 0.5) == 1
    assert bodies(await hand.run(1)) == [4]
    assert await replay(engine, since_at=instants[4] + 0.5) == 0
    assert await hand.nothing()


async def test_a_replayed_event_comes_with_numbers_of_its_own(rig: Rig, engine: Engine) -> None:
    """What an earlier delivery of it still says, is refused."""
    hand = await subscriber(rig, "order.*")
    [offset] = await append(engine, rig.event())
    [old] = await hand.run(1)
    assert await replay(engine, offset=offset) == 1
    lease = await hand.one()
    assert (lease.event, lease.tries, lease.lost) == (old.event, 1, 0)
    with pytest.raises(LeaseLost):
        await hand.settle(old, "dead", reason="failed", error="late")
    await hand.done(lease)


async def test_a_replay_does_not_double_what_is_outstanding(rig: Rig, engine: Engine) -> None:
    """What waits, ready or delayed, comes once, as if nobody had asked; what was in hand may come once more."""
    hand = await subscriber(rig, "order.*", credit=2)
    offsets = await append(engine, *(rig.event(body=number) for number in range(5)))
    first, second = await hand.take(2)
    await hand.retry(second, after_s=30.0)
    third = await hand.one()
    for _ in range(2):
        await replay(engine, offset=offsets[0])
    await hand.done(first, third)
    seen = [first.offset, third.offset]
    for seconds in (0.0, 31.0):
        await rig.pass_time(seconds)
        while not await hand.nothing():
            seen += [lease.offset for lease in await hand.run(1)]
    assert [seen.count(offset) for offset in offsets[1:2] + offsets[3:]] == [1, 1, 1]
    assert all(1 <= seen.count(each.offset) <= 2 for each in (first, third))


async def test_a_replay_while_nobody_is_there_waits(rig: Rig, engine: Engine) -> None:
    """It is the subscription's, not a worker's."""
    hand = await subscriber(rig, "order.*")
    offsets = await append(engine, *(rig.event(body=number) for number in range(3)))
    await hand.run(3)
    await hand.leave()
    assert await replay(engine, offset=offsets[1]) == 2
    await append(engine, rig.event(body=3))
    hand = await subscriber(rig, "order.*")
    assert bodies(await hand.run(3)) == [1, 2, 3]
    assert await hand.nothing()


@needs("events", "queues")
async def test_a_replay_needs_a_subscription_and_one_place(rig: Rig, engine: Engine) -> None:
    """The mistake is told."""
    await rig.hand("mail.send")
    for name in ("orders.nobody", "mail.send"):
        with pytest.raises(BadRequest):
            await replay(engine, name, offset=0)
    await subscriber(rig, "order.*")
    with pytest.raises(BadRequest):
        await replay(engine)
    with pytest.raises(BadRequest):
        await replay(engine, offset=1, since_at=1.0)


async def test_a_replay_outlives_a_restart(rig: Rig, engine: Engine) -> None:
    """What it returned from is durable, as everything."""
    hand = await subscriber(rig, "order.*")
    offsets = await append(engine, *(rig.event(body=number) for number in range(3)))
    await hand.run(3)
    await hand.leave()
    await replay(engine, offset=offsets[0])
    await rig.restart()
    hand = await subscriber(rig, "order.*")
    assert bodies(await hand.run(3)) == [0, 1, 2]
    assert await hand.nothing()


# --- ending -------------------------------------------------------------------------------------------------


async def test_a_subscription_is_ended_when_nobody_has_it(rig: Rig, engine: Engine) -> None:
    """Refused while a worker is attached; then it is gone with all that it had not got, and others are not touched."""
    hand = await subscriber(rig, "order.*")
    other = await subscriber(rig, "order.*", name="mail.confirm")
    await append(engine, *(rig.event(body=number) for number in range(4)))
    [first] = await hand.take(1)
    await hand.settle(first, "dead", reason="failed", error="no")
    with pytest.raises(BadRequest, match="worker"):
        await engine.events.abandon("orders.audit", timeout_s=T_S)
    await hand.leave()
    assert await engine.events.abandon("orders.audit", timeout_s=T_S) == 4
    assert "orders.audit" not in [queue.name for queue in await engine.leases.queues(timeout_s=T_S) if queue.patterns]
    with pytest.raises(BadRequest, match=r"mail\.confirm"):
        await engine.events.abandon("orders.audit", timeout_s=T_S)
    await append(engine, rig.event(body=4))
    assert bodies(await other.run(5)) == [0, 1, 2, 3, 4]
    hand = await subscriber(rig, "order.*")
    assert await hand.nothing(), "it begins anew"
    await append(engine, rig.event(body=5))
    assert bodies(await hand.run(1)) == [5]


# --- retention ----------------------------------------------------------------------------------------------


async def test_what_is_older_than_the_retention_is_forgotten(rig: Rig, engine: Engine) -> None:
    """The younger stays, and offsets go on growing."""
    hand = await subscriber(rig, "order.*")
    old = await append(engine, *(rig.event(body=number) for number in range(3)))
    await hand.run(3)
    await hand.leave()
    await rig.leap(rig.retention_s * 0.6)
    young = await append(engine, rig.event(body=3))
    await (await subscriber(rig, "order.*")).leave()
    await rig.leap(rig.retention_s * 0.5)

    async def swept() -> bool:
        return [each.offset for each in await engine.events.read("#", timeout_s=T_S)] == young

    await rig.eventually(swept, "old events are forgotten")
    assert (await append(engine, rig.event()))[0] > young[-1] > old[-1]
    assert await replay(engine, offset=0) == 2


async def test_the_retention_spares_what_is_outstanding(rig: Rig, engine: Engine) -> None:
    """What a subscriber that is down, or one that fails, has still to get, and what is dead: however old."""
    hand = await subscriber(rig, "order.*", credit=1)
    offsets = await append(engine, *(rig.event(body=number) for number in range(5)))
    await hand.dead(await hand.one())
    await hand.run(1)
    await hand.retry(await hand.one(), after_s=rig.retention_s * 2.5)
    await hand.leave()
    for _ in range(3):
        await rig.leap(rig.retention_s)
    hand = await subscriber(rig, "order.*")
    assert sorted(bodies(await hand.run(3))) == [2, 3, 4]  # type: ignore[type-var]
    await engine.leases.requeue("orders.audit", timeout_s=T_S)
    lease = await hand.one()
    assert (lease.offset, bodies([lease])) == (offsets[0], [0])
    assert await hand.nothing()


async def test_the_retention_spares_what_a_subscriber_that_is_far_behind_has_to_get(rig: Rig, engine: Engine) -> None:
    """Thousands of events that came while it was down for longer than they are kept: each subscription that exists gets
    every event at least once."""
    hand = await subscriber(rig, "order.*", credit=500)
    await hand.leave()
    for number in range(0, 5000, 1000):
        await append(engine, *(rig.event(body=number + each) for each in range(1000)))
    await rig.leap(rig.retention_s * 1.5)
    await rig.pass_time(120.0)
    hand = await subscriber(rig, "order.*", credit=500)
    got: list[object] = []
    while len(got) < 5000:
        await rig.eventually(lambda: hand.holding, "the next deliveries")
        leases = await hand.take(len(hand.holding))
        got += bodies(leases)
        await hand.done(*leases)
    assert sorted(got) == list(range(5000))  # type: ignore[type-var]
    assert await hand.nothing()
