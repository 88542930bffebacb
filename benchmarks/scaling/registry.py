"""What hubs and processes say to each other when nothing happens, when a host dies, and when a host is renewed.

Owns: the scenes, played with real hubs, real agents and real bytes in memory, under the hand-turned clock.
Leaves to others: everybody coming at once (storm), what a message costs a processor (units).

Three hubs. Of the processes, one is a whole agent with its table and is believed; the others are its crowd: they say
on the wire what an agent says, but keep no table, since ten thousand of them would not fit into this process. All
watchers of a hub are told the same, so what the hubs tell the one agent is multiplied by the number of watchers.
"""

from __future__ import annotations

import gc
import random
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from benchmarks.scaling.model import Model
from mesh.clock import ManualClock, settle
from mesh.discovery.agent import Agent
from mesh.discovery.hub import Hub, Peer
from mesh.discovery.record import Instance
from mesh.discovery.registrations import Holdings
from mesh.discovery.table import Change
from mesh.discovery.uplink import ABOUT
from mesh.protocol.codec import Writer
from mesh.protocol.messages import HELLO, LEAVE, REGISTER, RENEW, VERSION
from mesh.transport.contract import Buffer, Channel, MakeSession
from mesh.transport.memory import MemoryListener, MemoryNetwork, MemoryTransport

HUBS: Final = 3
WATCHER: Final = "watcher"
#: The crowd beats in so many slices of a second, not all in one instant.
SLICES: Final = 10
#: A lease, a tick and some: after this all that silence says is known.
LONG_S: Final = 6.5
#: In the scenes that wait so long the crowd renews only so often, half a lease, to spare the reader's patience; what
#: a second of renewals is, the quiet scene counts.
SELDOM_S: Final = 2.5


@dataclass
class Meter:
    """What crossed one hub's door: all that came in, and what went out to the one who is believed."""

    in_messages: int = 0
    in_bytes: int = 0
    out_messages: int = 0
    out_bytes: int = 0


class Metered:
    """A session of a hub, counted."""

    def __init__(self, session: Peer, meter: Meter) -> None:
        self._session = session
        self._meter = meter
        self.opened = session.opened
        self.lost = session.lost

    def receive(self, frames: list[Buffer]) -> None:
        self._meter.in_messages += 1
        self._meter.in_bytes += sum(map(len, frames))
        self._session.receive(frames)

    def data_to_send(self) -> list[list[Buffer]]:
        waiting = self._session.data_to_send()
        if self._session.name == WATCHER:
            self._meter.out_messages += len(waiting)
            self._meter.out_bytes += sum(len(frame) for frames in waiting for frame in frames)
        return waiting


class MeteredTransport(MemoryTransport):
    """A hub's transport, which counts at the door."""

    def __init__(self, network: MemoryNetwork) -> None:
        super().__init__(network)
        self.meter = Meter()

    async def listen(self, endpoint: str, accept: MakeSession) -> MemoryListener:
        def metered(channel: Channel) -> Metered:
            session = accept(channel)
            assert isinstance(session, Peer)
            return Metered(session, self.meter)

        return await super().listen(endpoint, metered)


class Member:
    """One of the crowd, at one hub: says what an agent says, hears nothing."""

    def __init__(self, holdings: Holdings, name: str, channel: Channel) -> None:
        self._holdings = holdings
        self._name = name
        self._channel = channel
        self._writer = Writer()

    def opened(self) -> None:
        self.say(HELLO, VERSION, self._name, 1, 1 << 26, ABOUT)
        self.register()

    def say(self, *message: Any) -> None:
        self._writer.add(*message)
        self._channel.wake()

    def register(self) -> None:
        for body in self._holdings.registrations(self._holdings.ids()):
            self._writer.add_body((REGISTER, 1), body)
        self._channel.wake()

    def renew(self) -> None:
        for renewals in self._holdings.renewals():
            self.say(RENEW, renewals)

    def receive(self, frames: list[Buffer]) -> None:
        pass

    def data_to_send(self) -> list[list[Buffer]]:
        return self._writer.take()

    def lost(self, reason: str) -> None:
        pass


@dataclass
class Process:
    """One process of the crowd: what it holds, and its connection to each hub."""

    name: str
    holdings: Holdings
    members: list[Member] = field(default_factory=list)


@dataclass
class Scene:
    """What one scene took. Counts are of one hub; `told` is what it sent to one watcher.

    Attributes:
        in_messages, in_bytes: that reached the hub.
        news, told_bytes: messages and bytes to each watcher.
        known_s: from the beginning until the believed agent knew the outcome.
    """

    in_messages: int = 0
    in_bytes: int = 0
    news: int = 0
    told_bytes: int = 0
    known_s: float = 0.0


class Play:
    """One mesh's discovery."""

    def __init__(self, model: Model, seed: int = 1) -> None:
        self.model = model
        self.clock = ManualClock()
        self.network = MemoryNetwork(self.clock)
        self.hubs: list[Hub] = []
        self.doors: list[MeteredTransport] = []
        self.crowd: list[Process] = []
        self.left: list[Change] = []
        self._rng = random.Random(seed)
        self._transport = MemoryTransport(self.network)
        self._numbers = model.instances
        self._slice = 0

    async def start(self) -> None:
        """Three hubs that have learned, everybody registered, one agent that knows all."""
        for number in range(HUBS):
            door = MeteredTransport(self.network)
            hub = Hub(door, self.clock, identity=f"hub-{number}", epoch=1, learn_s=1.0)
            await hub.start(f"mem://hub-{number}")
            self.doors.append(door)
            self.hubs.append(hub)
        for number in range(self.model.instances):
            self._join(self.model.record(number))
        await settle()
        self.agent = Agent(
            MemoryTransport(self.network),
            self.clock,
            [hub.endpoint for hub in self.hubs],
            identity=WATCHER,
            epoch=1,
            rng=random.Random(self._rng.random()),
        )
        await self.agent.start()
        self.agent.on_change(self._note)
        await self.run(1.5)
        assert len(self.agent.table) == self.model.instances

    def _note(self, change: Change) -> None:
        if change.left:
            self.left.append(change)

    def _join(self, record: Instance) -> Process:
        process = Process(record.worker, Holdings())
        process.holdings.add([record])
        for hub in self.hubs:
            self._transport.dial(hub.endpoint, lambda channel: self._member(process, channel))
        self.crowd.append(process)
        return process

    def _member(self, process: Process, channel: Channel) -> Member:
        member = Member(process.holdings, process.name, channel)
        process.members.append(member)
        return member

    async def run(self, seconds: float, every_s: float = 1.0) -> None:
        """Turn the clock; each of the crowd renews once in `every_s`."""
        slices = round(SLICES * every_s)
        for _ in range(round(seconds * SLICES)):
            self._slice = (self._slice + 1) % slices
            for process in self.crowd[self._slice :: slices]:
                for member in process.members:
                    member.renew()
            await self.clock.advance(1 / SLICES)

    async def close(self) -> None:
        for hub in self.hubs:
            await hub.stop(0)
        await self.agent.stop()
        for transport in (self._transport, *self.doors):
            await transport.close()
        await settle()

    # --- scenes -------------------------------------------------------------------------------------------

    @property
    def _door(self) -> Meter:
        return self.doors[0].meter

    def _since(self, before: Meter) -> Scene:
        now = self._door
        return Scene(
            now.in_messages - before.in_messages,
            now.in_bytes - before.in_bytes,
            now.out_messages - before.out_messages,
            now.out_bytes - before.out_bytes,
        )

    async def quiet(self) -> Scene:
        """One second in which nothing happens."""
        before = Meter(**vars(self._door))
        await self.run(1.0)
        return self._since(before)

    async def host_dies(self) -> Scene:
        """A power cut: its workers say nothing any more."""
        before, began_at = Meter(**vars(self._door)), self.clock.now()
        dead, self.crowd = self.crowd[: self.model.workers], self.crowd[self.model.workers :]
        gone = [process.name for process in dead]
        known_at = 0.0
        for _ in range(round(LONG_S * SLICES)):
            await self.run(1 / SLICES, SELDOM_S)
            if not known_at and all(self.agent.table.get(name) is None for name in gone):
                known_at = self.clock.now()
        scene = self._since(before)
        scene.known_s = known_at - began_at
        return scene

    async def loads_swing(self) -> Scene:
        """The second of two seconds in each of which some instances are full or empty that were not: each says so in
        its own beat, and hubs tell it as they do."""
        for load in (0.9, 0.0):
            before = Meter(**vars(self._door))
            for process in self.crowd[1 :: self.model.swinging]:
                process.holdings.load(process.name, load)
            await self.run(1.0)
        return self._since(before)

    async def host_is_renewed(self) -> Scene:
        """One worker after the other: its replacement registers, then it leaves."""
        before, began_at = Meter(**vars(self._door)), self.clock.now()
        old, self.crowd = self.crowd[: self.model.workers], self.crowd[self.model.workers :]
        for process in old:
            self._numbers += 1
            record = process.holdings.get(process.name)
            assert record is not None
            name = f"{record.service}-{self._numbers:08x}"
            self._join(msgspec.structs.replace(record, id=name, worker=name))
            await self.clock.advance(0.05)
            for member in process.members:
                member.say(LEAVE, [[record.id, record.epoch]])
            await self.clock.advance(0.05)
        scene = self._since(before)
        scene.known_s = self.clock.now() - began_at
        return scene

    async def hub_dies(self) -> int:
        """One of the three is killed; how many living instances the agent then takes for gone."""
        self.left.clear()
        hub = self.hubs.pop()
        if hub._ticking is not None:
            hub._ticking.cancel()
        self.network.kill(self.doors[-1])
        for process in self.crowd:
            process.members.pop()
        await self.run(LONG_S, SELDOM_S)
        return sum(len(change.left) for change in self.left)


@dataclass
class Scenes:
    """All of one mesh."""

    quiet: Scene
    loads_swing: Scene
    host_dies: Scene
    host_is_renewed: Scene
    taken_for_gone: int


async def play(model: Model) -> Scenes:
    """Each scene once, one after the other."""
    theatre = Play(model)
    # Nothing here is garbage before the end, and looking for it among a million objects takes most of the time.
    gc.disable()
    try:
        await theatre.start()
        quiet = await theatre.quiet()
        swing = await theatre.loads_swing()
        dies = await theatre.host_dies()
        renewed = await theatre.host_is_renewed()
        return Scenes(quiet, swing, dies, renewed, await theatre.hub_dies())
    finally:
        await theatre.close()
        gc.enable()
