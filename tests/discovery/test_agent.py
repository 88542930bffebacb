"""Agents and hubs in memory, under a hand-turned clock."""

from __future__ import annotations

import asyncio
import re

import pytest

from mesh.clock import settle
from mesh.discovery.hub import Hub
from mesh.errors import BadEndpoint, SetupError
from mesh.protocol.codec import Reader, one
from mesh.protocol.messages import WATCH
from mesh.transport.memory import MemoryTransport


def ids(agent, service="a"):
    return [record.id for record in agent.table.instances(service)]


async def test_one_process_finds_what_another_registers(world, make):
    """Registered before or after the other came: it is found without any time passing."""
    await world.hub()
    worker = await world.agent("w1")
    worker.register(make("a-1"))
    await settle()
    reader = await world.agent("w2")
    worker.register(make("a-2"), make("b-1"))
    await settle()

    assert ids(reader) == ["a-1", "a-2"]
    assert ids(reader, "b") == ["b-1"]
    assert ids(worker) == ["a-1", "a-2"]
    assert reader.synced
    assert not reader.table.certain
    await world.clock.advance(5.5)
    assert reader.table.certain


async def test_renewals_keep_an_instance_and_their_end_removes_it(world, make):
    """A living process stays; one that was killed is gone a lease later."""
    await world.hub()
    worker, reader = await world.agent("w1"), await world.agent("w2")
    worker.register(make("a-1"))
    await world.clock.advance(60.0)
    assert ids(reader) == ["a-1"]

    world.kill_agent(worker)
    await world.clock.advance(3.0)
    assert ids(reader) == ["a-1"]
    await world.clock.advance(2.5)
    assert ids(reader) == []


async def test_leaving_is_immediate(world, make):
    """When `leave` returns, every hub has told its watchers; no time passed."""
    await world.hub("h1")
    await world.hub("h2")
    worker, reader = await world.agent("w1", "h1", "h2"), await world.agent("w2", "h1", "h2")
    worker.register(make("a-1"), make("a-2"))
    await settle()

    left = []
    reader.on_change(lambda change: left.extend((record.id, reason) for record, reason in change.left))
    await worker.leave("a-1", "unheard-of")
    await settle()
    assert left == [("a-1", "left")]
    assert ids(reader) == ["a-2"]
    await world.clock.advance(10.0)
    assert left == [("a-1", "left")]


async def test_stopping_leaves_first(world, make):
    """A process that ends gracefully is off the list at once."""
    hub = await world.hub()
    worker, reader = await world.agent("w1"), await world.agent("w2")
    worker.register(make("a-1"))
    await settle()
    await worker.stop()
    await settle()
    assert ids(reader) == []
    assert hub.stats().links == 1
    assert worker.hubs_status()[0].link == "closed"
    await worker.stop()


async def test_a_left_id_needs_a_later_epoch(world, make):
    """What has said goodbye for good is not registered again by mistake."""
    await world.hub()
    worker = await world.agent("w1")
    worker.register(make("a-1"))
    await worker.leave("a-1")
    with pytest.raises(SetupError, match=r"a-1\b.*\bepoch 1\b"):
        worker.register(make("a-1"))
    worker.register(make("a-1", epoch=2))
    await settle()
    assert ids(worker) == ["a-1"]


async def test_a_wrong_record_fails_where_it_is_registered(world, make):
    """The caller is told before any hub is, and nothing of the call is taken."""
    await world.hub()
    worker = await world.agent("w1")
    with pytest.raises(SetupError, match="load"):
        worker.register(make("a-1"), make("a-2", load=7.0))
    with pytest.raises(SetupError, match=r"'a' .*30000\d\d.*max_record"):
        worker.register(make("a-1"), make("a-2", doc="x" * 3_000_000))
    with pytest.raises(SetupError, match="1024"):
        worker.register(*[make(f"a-{at}") for at in range(1025)])
    await settle()
    assert ids(worker) == []


async def test_without_a_hub_a_process_goes_on(world, make):
    """The hub comes later: it is found by itself, and everything is registered."""
    worker = await world.agent("w1")
    worker.register(make("a-1"))
    await world.clock.advance(30.0)
    assert not worker.synced
    status = worker.hubs_status()[0]
    assert status.failures > 25
    assert "mem://" in status.reason

    await world.hub()
    await world.clock.advance(1.1)
    assert worker.synced
    assert ids(worker) == ["a-1"]
    assert worker.hubs_status()[0].link == "open"


async def test_no_hubs_at_all_is_legal(world, make):
    """A process alone registers, leaves and stops without waiting."""
    worker = await world.agent("w1")
    worker._uplinks.clear()
    worker.register(make("a-1"))
    assert not await_now(worker.leave("a-1"))


def await_now(coroutine):
    """Run a coroutine that must not wait."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("it waited")


async def test_a_malformed_hub_endpoint_fails_at_the_start(world):
    """A typing error in the configuration does not become an endless retry."""
    with pytest.raises(BadEndpoint):
        await world.agent("w1", "")


async def test_a_hub_that_is_killed_and_comes_back_disturbs_nobody(world, make):
    """Nothing is gone while it is away, while it learns, or after; a worker that died meanwhile is gone then."""
    await world.hub(epoch=1)
    worker, doomed, reader = [await world.agent(name) for name in ("w1", "w2", "w3")]
    worker.register(make("a-1"))
    doomed.register(make("b-1"))
    await world.clock.advance(6.0)
    left = []
    reader.on_change(lambda change: left.extend(record.id for record, _ in change.left))

    world.kill_hub("hub")
    world.kill_agent(doomed)
    await world.clock.advance(30.0)
    assert left == []
    assert ids(reader) == ["a-1"]
    assert reader.hubs_status()[0].view == "absent"

    await world.hub(epoch=2)
    await world.clock.advance(4.5)
    assert reader.hubs_status()[0].view == "learning"
    assert left == []
    await world.clock.advance(1.5)
    assert left == ["b-1"]
    assert ids(reader) == ["a-1"]


async def test_a_cut_connection_is_made_again_and_everything_registered(world, make):
    """The hub did not restart: what is registered again is no news."""
    hub = await world.hub()
    worker, reader = await world.agent("w1"), await world.agent("w2")
    worker.register(make("a-1"))
    await world.clock.advance(6.0)
    number = hub.stats().number
    world.network.cut("mem://hub")
    await world.clock.advance(1.1)
    assert hub.stats().links == 2
    assert hub.stats().number == number
    worker.register(make("a-2"))
    await settle()
    assert ids(reader) == ["a-1", "a-2"]


async def test_one_of_two_hubs_is_enough(world, make):
    """With one hub dead, news travels through the other, and nothing expires."""
    await world.hub("h1")
    await world.hub("h2")
    worker, reader = await world.agent("w1", "h1", "h2"), await world.agent("w2", "h1", "h2")
    worker.register(make("a-1"))
    await world.clock.advance(6.0)
    world.kill_hub("h1")
    worker.register(make("a-2"))
    await world.clock.advance(20.0)
    assert ids(reader) == ["a-1", "a-2"]
    await worker.leave("a-2")
    assert ids(reader) == ["a-1"]


async def test_a_hub_that_forgot_is_told_again(world, make):
    """`unknown` is answered with a registration."""
    hub = await world.hub()
    worker = await world.agent("w1")
    worker.register(make("a-1"), make("a-2"))
    await settle()
    hub.registry.leave("w1", [["a-1", 1]])
    await world.clock.advance(1.1)
    assert [record.id for record in (hub.registry.get("a-1"), hub.registry.get("a-2"))] == ["a-1", "a-2"]


async def test_many_instances_are_renewed_in_one_message(world, make):
    """A worker's beat is one message, however many instances it has."""
    hub = await world.hub()
    worker = await world.agent("w1")
    worker.register(*[make(f"a-{at}") for at in range(200)])
    await settle()
    seen = []
    renew = hub.registry.renew
    hub.registry.renew = lambda peer, renewals, now: seen.append(len(renewals)) or renew(peer, renewals, now)
    await world.clock.advance(3.0)
    assert seen == [200, 200, 200]


async def test_load_travels_with_renewals_and_coarsely(world, make):
    """A moved load reaches readers; a trembling one costs no news."""
    hub = await world.hub()
    worker, reader = await world.agent("w1"), await world.agent("w2")
    worker.register(make("a-1"))
    await world.clock.advance(6.0)
    worker.update_load("a-1", 0.5)
    await world.clock.advance(1.0)
    assert reader.table.get("a-1").load == 0.5
    number = hub.stats().number
    for load in (0.45, 0.55, 0.5):
        worker.update_load("a-1", load)
        await world.clock.advance(1.0)
    assert hub.stats().number == number
    worker.update_load("a-1", 17.0)
    await world.clock.advance(1.0)
    assert reader.table.get("a-1").load == 1.0


async def test_loads_are_told_to_those_who_ask_for_them(world, make):
    """A process of an earlier release, which does not know them, hears nothing that it would have to refuse."""
    await world.hub()
    worker, reader = await world.agent("w1"), await world.agent("w2")
    transport = MemoryTransport(world.network)
    world.transports["earlier"] = transport
    strangers = []
    frames = [one(1, 1, "earlier", 1, 10**6, {"role": "node"}), one(WATCH)]
    transport.dial("mem://hub", lambda channel: strangers.append(Stranger(channel, *frames)) or strangers[0])
    worker.register(make("a-1"), make("a-2"))
    await world.clock.advance(6.0)
    changes = []
    reader.on_change(changes.append)
    heard = len(strangers[0].heard)
    for load in (0.5, 1.0):
        worker.update_load("a-1", load)
        worker.update_load("a-2", load)
        await world.clock.advance(1.5)
    assert [sorted((each.id, each.load) for each in change.updated) for change in changes] == [
        [("a-1", 0.5), ("a-2", 0.5)],
        [("a-1", 1.0), ("a-2", 1.0)],
    ]
    assert len(strangers[0].heard) == heard


async def test_changes_of_one_turn_reach_watchers_as_one(world, make):
    """Two hundred workers that register at once are few messages to each watcher."""
    hub = await world.hub()
    reader = await world.agent("reader")
    workers = [await world.agent(f"w{at}") for at in range(50)]
    number = hub.stats().number
    for at, worker in enumerate(workers):
        worker.register(make(f"a-{at}"))
    await settle()
    assert len(ids(reader)) == 50
    assert hub.stats().number == number + 1


async def test_a_gap_is_mended_by_a_new_snapshot(world, make):
    """A reader that missed a change asks once, and knows everything again."""
    hub = await world.hub()
    reader, worker = await world.agent("w1"), await world.agent("w2")
    await world.clock.advance(6.0)
    hub.registry.number += 3
    worker.register(make("a-1"))
    await settle()
    assert ids(reader) == ["a-1"]
    assert reader.hubs_status()[0].view == "learned"
    assert reader.hubs_status()[0].number == hub.stats().number


async def test_the_elder_process_yields_its_id(world, make):
    """Two processes with one id: the one that started later has it, and the other stops claiming it."""
    await world.hub()
    elder, younger = await world.agent("w1"), await world.agent("w2")
    elder.register(make("a-1", epoch=1, endpoint="one"))
    await settle()
    younger.register(make("a-1", epoch=2, endpoint="two"))
    await world.clock.advance(10.0)
    assert elder.table.get("a-1").endpoint == "two"
    with pytest.raises(SetupError, match="epoch 1"):
        elder.register(make("a-1", epoch=1))


async def test_waiting_for_a_service_is_woken_by_its_arrival(world, make):
    """`on_change` is what wait_for is made of; it can be ended."""
    await world.hub()
    worker, reader = await world.agent("w1"), await world.agent("w2")
    found = asyncio.get_running_loop().create_future()
    calls = []

    def look(change):
        calls.append(change)
        if reader.table.instances("a") and not found.done():
            found.set_result(None)

    end = reader.on_change(look)
    worker.register(make("a-1"))
    await found
    end()
    end()
    worker.register(make("a-2"))
    await settle()
    assert len(calls) == 1


async def test_a_listener_that_fails_does_not_keep_the_news_from_others(world, make):
    """Its fault is logged."""
    await world.hub()
    worker, reader = await world.agent("w1"), await world.agent("w2")
    seen = []
    reader.on_change(lambda change: 1 / 0)
    reader.on_change(seen.append)
    worker.register(make("a-1"))
    await settle()
    assert len(seen) == 1


async def test_waiting_to_be_synced(world):
    """True as soon as a hub has spoken, False when the time is over; cancelling leaves nothing behind."""
    reader = await world.agent("w1")
    late = asyncio.create_task(reader.wait_synced(3.0))
    cancelled = asyncio.create_task(reader.wait_synced(100.0))
    await world.clock.advance(2.9)
    assert not late.done()
    cancelled.cancel()
    await world.clock.advance(0.2)
    assert await late is False
    assert not reader._waiters

    soon = asyncio.create_task(reader.wait_synced(3.0))
    await world.hub()
    await world.clock.advance(1.0)
    assert await soon is True
    assert await reader.wait_synced(0.0) is True


async def test_leaving_does_not_wait_for_a_hub_that_does_not_answer(world, make):
    """The wait is bounded."""
    await world.hub()
    worker = await world.agent("w1")
    worker.register(make("a-1"))
    await settle()
    world.network.partition("mem://hub")
    leaving = asyncio.create_task(worker.leave("a-1"))
    await world.clock.advance(0.9)
    assert not leaving.done()
    await world.clock.advance(0.2)
    await leaving


async def test_a_hub_that_accepts_and_says_nothing_is_given_up(world):
    """A connection without a welcome is cut and tried again."""

    class Silent:
        lost_for: list[str] = []

        def opened(self):
            pass

        def receive(self, frames):
            pass

        def data_to_send(self):
            return []

        def lost(self, reason):
            self.lost_for.append(reason)

    transport = MemoryTransport(world.network)
    world.transports["silent"] = transport
    await transport.listen("mem://hub", lambda channel: Silent())
    reader = await world.agent("w1")
    await world.clock.advance(1.9)
    assert reader.hubs_status()[0].link == "greeting"
    await world.clock.advance(0.2)
    assert "2 s" in reader.hubs_status()[0].reason
    await world.clock.advance(1.0)
    assert len(Silent.lost_for) == 1


class Stranger:
    """A session that sends what it is told to, and keeps what comes."""

    def __init__(self, channel, *frames):
        self.channel = channel
        self.frames = list(frames)
        self.heard = []
        self.reason = None

    def opened(self):
        self.channel.wake()

    def receive(self, frames):
        self.heard += Reader().read(frames)

    def data_to_send(self):
        frames, self.frames = self.frames, []
        return [[frame] for frame in frames]

    def lost(self, reason):
        self.reason = reason


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        ([b"\xc1"], "frame 0"),
        ([one(WATCH)], "watch: .*greeting"),
        ([one(1, 99, "x", 1, 1000)], r"\b99\b"),
        ([one(1, 1, "", 1, 1000)], "identity"),
        ([one(1, 1, "x", 1, 10**6), one(48, 1, b"\x91\xc0")], "register: record 0: Expected `object`"),
        ([one(1, 1, "x", 1, 10**6), one(50, [["a", 1]])], r"renew: expected \[id, epoch, load\]"),
        ([one(1, 1, "x", 1, 10**6), one(52, ["a"])], r"leave: expected \[id, epoch\]"),
        ([one(1, 1, "x", 1, 10**6), one(54, "h", 1, 1, False, b"\x90")], "^snapshot: "),
        ([one(1, 1, "x", 1, 0), one(WATCH)], r"snapshot .*\bx\b.*\b0\b"),
    ],
)
async def test_a_stranger_is_told_why_it_is_cut_and_others_do_not_notice(world, make, frames, words):
    """Whatever a peer sends, the hub lives, the others' view does not move, and the peer hears the reason."""
    await world.hub()
    reader = await world.agent("w1")
    reader.register(make("a-1"))
    await settle()

    transport = MemoryTransport(world.network)
    world.transports["stranger"] = transport
    strangers = []
    transport.dial("mem://hub", lambda channel: strangers.append(Stranger(channel, *frames)) or strangers[0])
    await settle()

    kind, _code, reason = strangers[0].heard[-1]
    assert kind == 6
    assert re.search(words, reason), reason
    assert strangers[0].reason is not None
    await world.clock.advance(10.0)
    assert ids(reader) == ["a-1"]
    assert next(iter(world.hubs.values())).stats().links == 1


@pytest.mark.parametrize(
    "frames",
    [
        [b"\xc1"],
        [one(54, "h", 1, 1, False, b"\x90")],
        [one(2, 1, "h", 1, 0, 10**6), one(55, 1, b"\x90", [])],
        [one(2, 1, "h", 1, 0, 10**6), one(54, "h", 1, 1, False, b"\xc0")],
        [one(2, 1, "h", 1, 0, 10**6), one(54, "h", 1, 1, False, b"\x90"), one(55, 2, b"\x90", [["a-1", "1", 7]])],
        [one(2, 1, "h", 1, 0, 10**6), one(54, "h", 1, 1, False, b"\x90"), one(57, b"\x91\x92\x01\x02")],
        [one(2, 1, "h", 1, 0, 10**6), one(49, 1, 5000, 0)],
        [one(2, 1, "h", 1, 0, 10**6, {"role": "worker"})],
        [one(2, 7, "h", 1, 0, 10**6)],
        [one(6, "overloaded", "the hub is full")],
    ],
)
async def test_a_hub_that_talks_nonsense_is_left_and_tried_again(world, make, frames):
    """What a good hub said stays; the bad one's connection is cut, with the reason on show."""
    await world.hub("good")
    worker = await world.agent("w1", "good")
    worker.register(make("a-1"))
    transport = MemoryTransport(world.network)
    world.transports["bad"] = transport
    await transport.listen("mem://bad", lambda channel: Stranger(channel, *frames))

    reader = await world.agent("w2", "good", "bad")
    await world.clock.advance(20.0)
    assert ids(reader) == ["a-1"]
    status = reader.hubs_status()[1]
    assert status.reason
    assert 20 < status.failures < 40


async def test_a_hub_starts_once_and_stops_twice(world):
    """Starting twice is an error that says so; stopping is harmless."""
    hub = await world.hub()
    with pytest.raises(SetupError, match="mem://hub"):
        await hub.start("mem://other")
    await hub.stop()
    await hub.stop()
    never = Hub(MemoryTransport(world.network), world.clock, identity="h", epoch=1)
    await never.stop()


async def test_a_hub_that_stops_says_goodbye_and_is_missed_by_nobody(world, make):
    """Its clients keep its last view."""
    hub = await world.hub()
    worker = await world.agent("w1")
    worker.register(make("a-1"))
    await settle()
    await hub.stop()
    await settle()
    assert worker.hubs_status()[0].link == "waiting"
    assert ids(worker) == ["a-1"]


async def test_a_stop_that_is_cancelled_still_closes(world, make):
    """Cancelled while a silent hub does not confirm: the connections are closed all the same, and no timer is left."""
    await world.hub()
    worker = await world.agent("w1")
    worker.register(make("a-1"))
    await settle()
    world.network.partition("mem://hub")
    stopping = asyncio.create_task(worker.stop())
    await settle()
    assert not stopping.done()
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    await settle()
    assert worker.hubs_status()[0].link == "closed"
    assert worker._beating is None
    assert not worker._waiters
