"""What the in-memory twin has beyond the contract: faults to order, on a clock turned by hand."""

from __future__ import annotations

import random

import pytest

from mesh.clock import ManualClock, settle
from mesh.errors import BadEndpoint
from mesh.transport.memory import MemoryNetwork, MemoryTransport


class Note:
    """A session that writes down what happens to it."""

    def __init__(self, channel) -> None:
        self.channel = channel
        self.received: list[bytes] = []
        self.events: list[str] = []
        self._out: list[list[bytes]] = []

    def send(self, *frames: bytes) -> None:
        self._out += [[frame] for frame in frames]
        self.channel.wake()

    def opened(self) -> None:
        self.events.append("opened")

    def receive(self, frames) -> None:
        self.received.append(bytes(frames[0]))

    def data_to_send(self):
        out, self._out = self._out, []
        return out

    def lost(self, reason: str) -> None:
        self.events.append(reason)


class World:
    """Two transports, "worker" and "caller", on one network with a hand-turned clock."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.network = MemoryNetwork(self.clock, silence_s=3.0)
        self.worker, self.caller = MemoryTransport(self.network), MemoryTransport(self.network)
        self.accepted: list[Note] = []
        self.made: list[Note] = []

    async def listen(self, name: str = "w", transport: MemoryTransport | None = None) -> str:
        endpoint = f"mem://{name}"
        await (transport or self.worker).listen(endpoint, lambda channel: self._note(channel, self.accepted))
        return endpoint

    def dial(self, endpoint: str, transport: MemoryTransport | None = None) -> Note:
        (transport or self.caller).dial(endpoint, lambda channel: self._note(channel, self.made))
        return self.made[-1]

    def _note(self, channel, into: list[Note]) -> Note:
        into.append(Note(channel))
        return into[-1]

    async def pair(self) -> tuple[Note, Note]:
        note = self.dial(await self.listen())
        await settle()
        return note, self.accepted[-1]


@pytest.fixture
async def world():
    world = World()
    yield world
    await world.caller.close()
    await world.worker.close()
    for note in world.accepted + world.made:
        assert sum(event != "opened" for event in note.events) == 1, "lost exactly once, whatever the fault"


def numbers(count: int) -> list[bytes]:
    return [b"%d" % number for number in range(count)]


async def test_a_message_arrives_within_one_turn_of_the_loop_after_its_wake(world):
    """Fast enough that `settle` carries long chains to their end."""
    client, server = await world.pair()
    client.send(b"hello")
    assert server.received == []
    await settle(1)
    assert server.received == [b"hello"]


async def test_dropped_messages_are_lost_and_the_rest_keep_order(world):
    """A share is lost, chosen by the given randomness; the same seed loses the same."""
    client, server = await world.pair()
    world.network.drop("mem://w", 0.5, random.Random(7))
    client.send(*numbers(100))
    await settle()
    first = list(server.received)
    assert 30 < len(first) < 70
    assert first == sorted(first, key=int)
    world.network.drop("mem://w", 0.5, random.Random(7))
    server.received.clear()
    client.send(*numbers(100))
    await settle()
    assert server.received == first


async def test_everything_is_dropped_until_healed(world):
    """A full drop needs no randomness, a partial one does."""
    client, server = await world.pair()
    world.network.drop("mem://w")
    client.send(b"lost")
    server.send(b"lost")
    await settle()
    world.network.heal("mem://w")
    client.send(b"kept")
    await settle()
    assert (server.received, client.received) == ([b"kept"], [])
    with pytest.raises(ValueError, match="Random"):
        world.network.drop("mem://w", 0.5)


async def test_delayed_messages_arrive_late_and_in_order(world):
    """A delay is counted by the network's clock; shortening it lets nothing overtake."""
    client, server = await world.pair()
    world.network.delay("mem://w", 2.0)
    client.send(b"1")
    await world.clock.advance(0.5)
    world.network.delay("mem://w", 0.1)
    client.send(b"2")
    await settle()
    world.network.heal()
    client.send(b"3")
    await world.clock.advance(1.4)
    assert server.received == []
    await world.clock.advance(0.1)
    assert server.received == [b"1", b"2", b"3"]
    client.send(b"4")
    await settle(1)
    assert server.received[-1] == b"4", "a healed connection is as fast as before"


async def test_a_close_waits_behind_what_is_delayed(world):
    """The other side gets what was sent before the end, then the end."""
    client, server = await world.pair()
    world.network.delay("mem://w", 1.0)
    client.send(b"last words")
    client.channel.close()
    await settle()
    assert client.events == ["opened", "closed"]
    assert (server.received, server.events) == ([], ["opened"])
    await world.clock.advance(1.0)
    assert (server.received, server.events) == ([b"last words"], ["opened", "closed by the peer"])


async def test_a_cut_is_told_to_both_sides_and_the_listener_stays(world):
    """What is under way is gone; who dials anew is served."""
    client, server = await world.pair()
    client.send(b"under way")
    assert world.network.cut("mem://w", "cable pulled") == 1
    await settle()
    assert client.events == server.events == ["opened", "cable pulled"]
    assert server.received == []
    again = world.dial("mem://w")
    await settle()
    assert again.events == ["opened"]


async def test_a_short_partition_only_delays(world):
    """Healed before anybody noticed, everything that was held back arrives in order."""
    client, server = await world.pair()
    world.network.partition("mem://w")
    client.send(*numbers(3))
    server.send(*numbers(3))
    await world.clock.advance(2.9)
    assert server.received == client.received == []
    world.network.heal("mem://w")
    await world.clock.advance(10.0)
    assert server.received == client.received == numbers(3)
    assert client.events == ["opened"]


async def test_a_long_partition_is_noticed_on_both_sides(world):
    """After `silence_s` each side is told, as by heartbeats; healing later brings nothing back."""
    client, server = await world.pair()
    world.network.partition("mem://w")
    client.send(b"into the dark")
    await world.clock.advance(3.0)
    assert client.events[0] == server.events[0] == "opened"
    assert "3 s" in client.events[1]
    assert "3 s" in server.events[1]
    world.network.heal()
    await settle()
    assert server.received == []


async def test_dialling_into_a_partition_times_out_or_waits_for_its_end(world):
    """A dial is given up after `silence_s`, unless the network heals first."""
    endpoint = await world.listen()
    world.network.partition(endpoint)
    early = world.dial(endpoint)
    await world.clock.advance(1.5)
    late = world.dial(endpoint)
    await world.clock.advance(1.5)
    assert len(early.events) == 1
    assert "mem://w" in early.events[0]
    assert "3 s" in early.events[0]
    world.network.heal()
    await world.clock.advance(5.0)
    assert late.events == ["opened"]


async def test_a_transport_can_be_cut_off_as_a_whole(world):
    """Partitioned as a party, a process loses what it listens on and what it dialled; others go on."""
    hub = MemoryTransport(world.network)
    to_worker = world.dial(await world.listen("w"))
    from_worker = world.dial(await world.listen("hub", hub), world.worker)
    beside = world.dial("mem://hub")
    await settle()
    world.network.partition(world.worker)
    await world.clock.advance(3.0)
    assert "3 s" in to_worker.events[-1]
    assert "3 s" in from_worker.events[-1]
    assert beside.events == ["opened"]
    await hub.close()


async def test_a_killed_process_tells_nobody_and_its_peers_are_told(world):
    """As by kill -9: what it had sent arrives, its endpoint refuses, its own sessions hear nothing until cleaned up."""
    client, server = await world.pair()
    server.send(b"sent before")
    await settle(1)
    world.network.kill("mem://w")
    server.send(b"never sent")
    client.send(b"to the dead")
    refused = world.dial("mem://w")
    await settle()
    assert client.received == [b"sent before"]
    assert (len(client.events), client.events[0]) == (2, "opened")
    assert (server.received, server.events) == ([], ["opened"])
    assert len(refused.events) == 1
    assert "mem://w" in refused.events[0]
    again = MemoryTransport(world.network)
    await world.listen("w", again)
    await again.close()
    await world.worker.close()
    assert (len(server.events), server.events[0]) == (2, "opened")


async def test_a_killed_dialler_is_lost_to_the_listener(world):
    """A process may be killed that listens nowhere: name its transport."""
    _, server = await world.pair()
    world.network.kill(world.caller)
    await settle()
    assert (len(server.events), server.events[0]) == (2, "opened")


async def test_events_past_the_high_water_mark_are_dropped(world):
    """A subscriber that is given more in a turn than may wait loses the rest, as from a PUB socket."""
    network = MemoryNetwork(event_high_water=10)
    transport = MemoryTransport(network)
    got: list[bytes] = []
    subscriber = transport.subscriber("mem://events", lambda _topic, frame: got.append(bytes(frame)))
    subscriber.subscribe("")
    publisher = transport.publisher()
    publisher.connect("mem://events")
    await settle()
    for frame in numbers(15):
        publisher.send("t", frame)
    await settle()
    publisher.send("t", b"later")
    await settle()
    assert got == [*numbers(10), b"later"]
    await transport.close()


async def test_faults_reach_events_too(world):
    """Events to a subscriber's endpoint are delayed, dropped and kept back as messages are, but never held."""
    got: list[bytes] = []
    subscriber = world.worker.subscriber("mem://events", lambda _topic, frame: got.append(bytes(frame)))
    subscriber.subscribe("")
    publisher = world.caller.publisher()
    publisher.connect("mem://events")
    await settle()
    world.network.delay("mem://events", 1.0)
    publisher.send("t", b"late")
    await settle()
    assert got == []
    await world.clock.advance(1.0)
    assert got == [b"late"]
    for fault in (world.network.drop, world.network.partition):
        fault("mem://events")
        publisher.send("t", b"lost")
        world.network.heal()
    publisher.send("t", b"kept")
    await settle()
    assert got == [b"late", b"kept"]


async def test_endpoints_are_fresh_per_network_and_only_mem_is_carried(world):
    """Names are handed out once; what belongs to another transport is refused."""
    assert [world.worker.endpoint("w"), world.caller.endpoint("w")] == ["mem://w", "mem://w-2"]
    with pytest.raises(BadEndpoint, match="mem://name"):
        world.caller.dial("tcp://127.0.0.1:80", Note)
