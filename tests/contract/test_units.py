"""Units: what every engine promises to commit together, and once."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from engine_rig import T_S, Hand, Rig, needs, over_processes

from mesh import ids
from mesh.engines.contract import CAPABILITIES, CONTRACTS, Engine, Unit
from mesh.errors import BadRequest, Conflict, LeaseLost, MeshError, NotOffered, TryLater, Uncertain
from mesh.schedules.contract import Advance, Schedule
from mesh.state.contract import Write
from mesh.tasks.contract import Lease, Queue, Settlement

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])
NEEDS = ("queues", "events", "state", "schedules")

NIGHTLY = Schedule("orders.close_day", "0 3 * * *", "once", 1000.0)


@pytest.fixture
async def engine(rig: Rig) -> Engine:
    engine = await rig.engine()
    rig.together(engine, "queues", "events", "state", "schedules")
    await engine.schedules.declare([NIGHTLY], timeout_s=T_S)
    await engine.state.write([rig.put("taken"), rig.put("text", "text")], timeout_s=T_S)
    return engine


def add(key: str = "n", by: int = 1, **fields: Any) -> Write:
    return Write("carts", key, "add", ids.etag(), by=by, **fields)


async def number(engine: Engine, key: str = "n") -> int:
    [entry] = await engine.state.get("carts", [key], timeout_s=T_S)
    return msgspec.msgpack.decode(entry.value, type=int) if entry is not None else 0


async def everything(rig: Rig, engine: Engine) -> tuple[Any, ...]:
    """All that a unit may change, as it stands."""
    queues = await engine.leases.queues(timeout_s=T_S)
    return (
        await engine.state.page("carts", timeout_s=T_S),
        await engine.events.read("#", timeout_s=T_S),
        await engine.schedules.schedules(timeout_s=T_S),
        [(queue.name, queue.ready, queue.running, queue.dead, queue.done) for queue in queues],
    )


async def lease_of(rig: Rig) -> tuple[Hand, Lease]:
    hand = await rig.hand("mail.send", credit=1)
    await rig.defer(rig.task())
    return hand, await hand.one()


# --- together -----------------------------------------------------------------------------------------------


async def test_a_unit_is_committed_as_a_whole(rig: Rig, engine: Engine) -> None:
    """Everything at once, and the outcome tells of each in its order."""
    hand, lease = await lease_of(rig)
    audit = await rig.hand(Queue("orders.audit", 10, patterns=("order.*",)))
    tasks, events = rig.tasks(2, "mail.next"), [rig.event(), rig.event("order.paid")]
    writes = [rig.put("u1", 1), Write("carts", "taken", "delete", ids.etag()), add()]
    unit = rig.unit(
        tasks=tasks,
        events=events,
        writes=writes,
        settle=[hand.word(lease, "done", result=b"\x05")],
        advance=[Advance(NIGHTLY.name, 1000.0, 2000.0)],
    )
    outcome = await hand.engine.commit(unit, timeout_s=T_S)
    assert outcome.error is None
    assert [(ticket.id, ticket.fresh) for ticket in outcome.tickets] == [(task.id, True) for task in tasks]
    assert list(outcome.offsets) == [each.offset for each in await engine.events.read("#", timeout_s=T_S)]
    put, deleted, added = outcome.entries
    assert put is not None
    assert (put.key, put.etag, deleted) == ("u1", writes[0].new_etag, None)
    assert added is not None
    assert msgspec.msgpack.decode(added.value) == 1
    assert (await engine.jobs.wait(lease.id, timeout_s=T_S)).result == b"\x05"
    assert (await engine.schedules.schedules(timeout_s=T_S))[0].last_at == 2000.0
    assert [each.topic for each in await audit.take(2)] == ["order.created", "order.paid"]
    assert len(await (await rig.hand("mail.next")).take(2)) == 2


async def test_a_unit_of_nothing_is_nothing(rig: Rig, engine: Engine) -> None:
    """It does no harm."""
    before = await everything(rig, engine)
    outcome = await engine.commit(rig.unit(), timeout_s=T_S)
    assert (list(outcome.tickets), list(outcome.offsets), list(outcome.entries)) == ([], [], [])
    assert await everything(rig, engine) == before


BAD: dict[str, tuple[type[MeshError], dict[str, Any]]] = {
    "an etag that does not fit": (Conflict, {"writes": [Write("carts", "taken", "set", "e1", b"\x01", etag="")]}),
    "an addition to text": (BadRequest, {"writes": [Write("carts", "text", "add", "e1", by=1)]}),
    "a key that is too long": (BadRequest, {"writes": [Write("carts", "x" * 5000, "set", "e1", b"\x01")]}),
    "a lease that never was": (LeaseLost, {"settle": [Settlement("f" * 28, 1, "done")]}),
    "a schedule that went on": (Conflict, {"advance": [Advance(NIGHTLY.name, 999.0, 2000.0)]}),
    "a schedule that nobody declared": (Conflict, {"advance": [Advance("nobody.knows", 0.0, 1.0)]}),
    "a topic that is none": (BadRequest, {"events": ["order..created"]}),
    "a priority that is none": (BadRequest, {"tasks": [{"priority": 11}]}),
    "a task that waits for ever": (BadRequest, {"tasks": [{"waits": 1}]}),
}


@pytest.mark.parametrize("bad", BAD)
async def test_a_unit_with_one_bad_part_does_nothing(rig: Rig, engine: Engine, bad: str) -> None:
    """Whatever is wrong, and whatever else it has: no trace is left, and without the fault it goes through."""
    hand, lease = await lease_of(rig)
    error, parts = BAD[bad]
    word = hand.word(lease)
    good: dict[str, Any] = {
        "tasks": [rig.task("mail.next")],
        "events": [rig.event()],
        "writes": [rig.put("u1", 1), add()],
        "settle": [word],
        "advance": [Advance(NIGHTLY.name, 1000.0, 2000.0)],
    }
    made: dict[str, Any] = {
        "tasks": lambda fields: rig.task("mail.next", **fields),
        "events": lambda topic: rig.event(topic),
    }
    wrong = {part: [made.get(part, lambda each: each)(each) for each in items] for part, items in parts.items()}
    before = await everything(rig, engine)
    mixed = {part: [*good[part], *wrong.get(part, ())] for part in good}
    if "advance" in wrong:
        mixed["advance"] = wrong["advance"]
    unit = rig.unit(**mixed)
    with pytest.raises(error):
        await engine.commit(unit, timeout_s=T_S)
    assert await everything(rig, engine) == before
    assert await rig.status(engine, lease.id) == "running"
    # An id that was refused was not committed.
    await engine.commit(Unit(unit.id, **good), timeout_s=T_S)
    assert [await number(engine), await rig.status(engine, lease.id)] == [1, "done"]


async def test_units_of_one_moment_do_not_harm_each_other(rig: Rig, engine: Engine) -> None:
    """What is refused takes nothing with it, though it arrived together with what is not."""
    taken = Write("carts", "taken", "set", ids.etag(), b"\x01", etag="")
    units = [rig.unit(writes=[add(), *([taken] if number % 3 == 0 else [])]) for number in range(30)]
    outcomes = await asyncio.gather(*(engine.commit(unit, timeout_s=T_S) for unit in units), return_exceptions=True)
    assert [isinstance(outcome, Conflict) for outcome in outcomes] == [number % 3 == 0 for number in range(30)]
    assert await number(engine) == 20


# --- with the acknowledgement -------------------------------------------------------------------------------


async def test_effects_are_committed_with_the_acknowledgement(rig: Rig, engine: Engine) -> None:
    """A ledger that is written with it counts every task once, though half of the attempts are lost half way."""
    every = await rig.defer(*rig.tasks(40))
    done = 0
    for life in range(100):
        hand = await rig.hand("mail.send", credit=4, most_lost=1000)
        await rig.quiet()
        for lease in list(hand.holding.values())[life % 3 :]:
            unit = rig.unit(
                settle=[hand.word(lease)],
                writes=[add("ledger"), Write("ledger", lease.id, "set", ids.etag(), b"\x01", etag="")],
            )
            await hand.engine.commit(unit, timeout_s=T_S)
            done += 1
        await hand.leave()
        if done == len(every):
            break
    assert await number(engine, "ledger") == len(every)
    assert await engine.state.namespaces(timeout_s=T_S) == [("carts", 3), ("ledger", len(every))]


async def test_a_stale_acknowledgement_refuses_the_effects(rig: Rig, engine: Engine) -> None:
    """Who was thought dead writes nothing: the attempt of another does, once."""
    [_] = await rig.defer(rig.task())
    hand = await rig.hand("mail.send", credit=1)
    late = await hand.one()
    await hand.leave()
    other = await rig.hand("mail.send", credit=1)
    lease = await other.one()
    for stale in (late, late):
        with pytest.raises(LeaseLost):
            await engine.commit(
                rig.unit(settle=[hand.word(stale)], writes=[add()], tasks=[rig.task()], events=[rig.event()]),
                timeout_s=T_S,
            )
    await other.engine.commit(rig.unit(settle=[other.word(lease)], writes=[add()]), timeout_s=T_S)
    assert await number(engine) == 1
    assert await engine.events.read("#", timeout_s=T_S) == []
    assert await other.nothing()


async def test_effects_of_one_attempt_are_written_once(rig: Rig, engine: Engine) -> None:
    """Another unit with the same acknowledgement is refused, though settling alone might be said again."""
    hand, lease = await lease_of(rig)
    word = hand.word(lease)
    await engine.commit(rig.unit(settle=[word], writes=[add()]), timeout_s=T_S)
    with pytest.raises(LeaseLost):
        await engine.commit(rig.unit(settle=[word], writes=[add()]), timeout_s=T_S)
    await engine.leases.acknowledge([word], timeout_s=T_S)
    assert await number(engine) == 1


async def test_what_is_deferred_with_an_acknowledgement_follows_it(rig: Rig, engine: Engine) -> None:
    """A task that makes the next of its order: that begins when this one is done, at once."""
    [_] = await rig.defer(rig.task(order="o"))
    hand = await rig.hand("mail.send")
    for _ in range(5):
        lease = await hand.one()
        follower = rig.task(order="o")
        await hand.engine.commit(rig.unit(settle=[hand.word(lease)], tasks=[follower]), timeout_s=T_S)
    await hand.done(await hand.one())
    assert await hand.nothing()


async def test_a_delivery_is_acknowledged_with_its_effects(rig: Rig, engine: Engine) -> None:
    """As a task is: the projection that a durable handler keeps is exact."""
    hand = await rig.hand(Queue("orders.audit", 4, patterns=("order.*",)))
    await engine.events.append([rig.event(key="k") for _ in range(10)], timeout_s=T_S)
    for _ in range(10):
        lease = await hand.one()
        await hand.engine.commit(
            rig.unit(settle=[hand.word(lease)], writes=[add("seen")], events=[rig.event("audit.seen")]), timeout_s=T_S
        )
    assert await number(engine, "seen") == 10
    assert len(await engine.events.read("audit.*", timeout_s=T_S)) == 10


# --- once ---------------------------------------------------------------------------------------------------


async def test_a_unit_that_is_repeated_was_committed(rig: Rig, engine: Engine) -> None:
    """However often, and by whomever it is sent: its outcome is the first one, and nothing is done again."""
    hand, lease = await lease_of(rig)
    unit = rig.unit(
        tasks=[rig.task("mail.next"), rig.task("mail.next", key="k1")],
        events=[rig.event()],
        writes=[add(), rig.put("u1", 1, etag="")],
        settle=[hand.word(lease)],
        advance=[Advance(NIGHTLY.name, 1000.0, 2000.0)],
    )
    first = await hand.engine.commit(unit, timeout_s=T_S)
    after = await everything(rig, engine)
    # Something that would refuse it, were it not known.
    await engine.state.write([Write("carts", "u1", "delete", ids.etag())], timeout_s=T_S)
    await engine.state.write([rig.put("u1", 1)], timeout_s=T_S)
    for sender in (hand.engine, engine, await rig.engine()):
        assert await sender.commit(unit, timeout_s=T_S) == first
    assert (await everything(rig, engine))[1:] == after[1:]
    assert await number(engine) == 1


async def test_a_unit_that_is_sent_twice_at_once_is_committed_once(rig: Rig, engine: Engine) -> None:
    """The first answer may be on its way while the question is asked again."""
    unit = rig.unit(writes=[add()], tasks=[rig.task()], events=[rig.event()])
    engines = [engine, await rig.engine()]
    outcomes = await asyncio.gather(*(engines[turn % 2].commit(unit, timeout_s=T_S) for turn in range(6)))
    assert all(outcome == outcomes[0] for outcome in outcomes)
    assert await number(engine) == 1
    assert len(await engine.events.read("#", timeout_s=T_S)) == 1


async def test_a_unit_is_known_for_ten_minutes(rig: Rig, engine: Engine) -> None:
    """As long as anybody can be expected to ask again."""
    unit = rig.unit(writes=[add()])
    first = await engine.commit(unit, timeout_s=T_S)
    await rig.pass_time(595.0)
    assert await engine.commit(unit, timeout_s=T_S) == first
    assert await number(engine) == 1


@over_processes
async def test_a_unit_is_known_after_a_restart(rig: Rig, engine: Engine) -> None:
    """Whoever lost the answer with the engine asks the next one."""
    hand, lease = await lease_of(rig)
    unit = rig.unit(writes=[add()], tasks=[rig.task("mail.next")], events=[rig.event()], settle=[hand.word(lease)])
    first = await engine.commit(unit, timeout_s=T_S)
    await rig.restart()
    assert await engine.commit(unit, timeout_s=T_S) == first
    assert await number(engine) == 1
    assert len(await engine.events.read("#", timeout_s=T_S)) == 1


@over_processes
async def test_what_is_asked_while_the_engine_is_away_is_done_once(rig: Rig, engine: Engine) -> None:
    """Writers wait through a restart, and whatever they are told is true."""
    total = 0

    async def write(numbers: int) -> int:
        for _ in range(numbers):
            await engine.commit(rig.unit(writes=[add()]), timeout_s=60.0)
        return numbers

    writers = [asyncio.create_task(write(10)) for _ in range(5)]
    await asyncio.sleep(0)
    await rig.restart()
    total = sum(await rig.soon(asyncio.gather(*writers)))
    assert await number(engine) == total


# --- an engine out of reach ---------------------------------------------------------------------------------


async def test_an_engine_out_of_reach_is_waited_for(rig: Rig, engine: Engine) -> None:
    """Readers and writers wait; when it is back they are answered, and what they asked for is done once."""
    await rig.cut(engine)
    unit = rig.unit(writes=[add()], tasks=[rig.task()])
    writing = asyncio.create_task(engine.commit(unit, timeout_s=60.0))
    deferring = asyncio.ensure_future(engine.queues.defer([rig.task()], timeout_s=60.0))
    reading = asyncio.create_task(engine.state.get("carts", ["text"], timeout_s=60.0))
    await rig.pass_time(8.0)
    assert [each.done() for each in (writing, deferring, reading)] == [False] * 3
    await rig.mend(engine)
    await rig.soon(asyncio.gather(writing, deferring, reading))
    assert await number(engine) == 1
    assert len(await (await rig.hand("mail.send")).take(2)) == 2


async def test_waiting_for_an_engine_has_an_end(rig: Rig, engine: Engine) -> None:
    """Nothing was done, or it may have been: whoever asks is told which, and may ask the same again."""
    await rig.cut(engine)
    unit = rig.unit(writes=[add()])
    asked = [
        engine.commit(unit, timeout_s=5.0),
        engine.queues.defer([rig.task()], timeout_s=5.0),
        engine.jobs.find(ids.job_id(), timeout_s=5.0),
        engine.state.get("carts", ["n"], timeout_s=5.0),
        engine.locks.acquire("l", "o", ttl_s=10.0, wait_s=0.0, timeout_s=5.0),
        engine.schedules.schedules(timeout_s=5.0),
        engine.events.read("#", timeout_s=5.0),
    ]
    waiting = [asyncio.ensure_future(each) for each in asked]
    await rig.pass_time(4.5)
    assert not any(each.done() for each in waiting)
    await rig.pass_time(1.0)
    errors = await rig.soon(asyncio.gather(*waiting, return_exceptions=True))
    assert [isinstance(error, TryLater | Uncertain) for error in errors] == [True] * 7, errors
    await rig.mend(engine)
    await rig.pass_time(8.0)
    await rig.soon(engine.commit(unit, timeout_s=60.0))
    assert await number(engine) == 1


# --- what an engine offers ----------------------------------------------------------------------------------


@needs()
async def test_an_engine_says_what_it_offers(rig: Rig) -> None:
    """Each capability is there, or raises NotOffered; what it can commit together is among them."""
    engine = await rig.engine()
    assert engine.name
    assert engine.together <= engine.offers <= set(CAPABILITIES)
    offered = {*engine.offers, *(("leases",) if engine.offers & {"queues", "events"} else ())}
    for contract in CONTRACTS:
        if contract in offered:
            assert getattr(engine, contract) is not None
        else:
            with pytest.raises(NotOffered):
                getattr(engine, contract)


@needs()
async def test_what_cannot_be_committed_together_is_refused(rig: Rig) -> None:
    """By name, before anything is done."""
    engine = await rig.engine()
    parts = {"queues": [rig.task()], "events": [rig.event()], "state": [rig.put("u1")]}
    apart = [each for each in parts if each in engine.offers and each not in engine.together]
    if not apart:
        pytest.skip(f"{engine.name} commits everything together")
    names = {"queues": "tasks", "state": "writes"}
    together = {names.get(each, each): parts[each] for each in parts if each in engine.offers}
    with pytest.raises(NotOffered):
        await engine.commit(rig.unit(**together), timeout_s=T_S)
