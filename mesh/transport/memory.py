"""The in-memory transport: implements the transport contract without sockets, with fault injection.

Owns: carrying messages between the sessions of one event loop, and injected faults.
Leaves to others: publishers and subscribers (memory_events), what the messages mean (protocol), whole meshes in
one process (mesh.testing).

Transports that share a `MemoryNetwork` represent the processes of a mesh. A wake takes effect in the next turn of the
loop, never inside the call; messages sent in one turn arrive in that turn, in order.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import deque
from collections.abc import Callable, Iterable
from contextvars import Context

from mesh.clock import Clock, LoopClock
from mesh.errors import AddressInUse, BadEndpoint, ProtocolViolation
from mesh.telemetry.logs import get_logger
from mesh.transport import endpoints
from mesh.transport.contract import Buffer, MakeSession, Session
from mesh.transport.memory_events import MemoryPublisher, MemorySubscriber, soon

log = get_logger("mesh.transport")


class _End:
    """One side of a connection; the `Channel` of the contract."""

    __slots__ = (
        "_due",
        "_waking",
        "dialling",
        "endpoint",
        "gone",
        "inbox",
        "open",
        "other",
        "peer",
        "session",
        "transport",
        "user",
    )

    def __init__(self, transport: MemoryTransport, endpoint: str, peer: str, *, dialling: bool) -> None:
        self.transport = transport
        self.endpoint = endpoint
        self.peer = peer
        self.user = ""
        self.dialling = dialling
        self.session: Session | None = None
        self.other: _End | None = None
        #: Messages on their way to this end: (due_at, frames), or (due_at, reason) for the end of the connection.
        self.inbox: deque[tuple[float, list[Buffer] | str]] = deque()
        self.open = False
        self.gone = False
        self._waking = False
        self._due = 0.0
        transport._ends[self] = None

    def wake(self) -> None:
        if not self._waking and not self.gone:
            self._waking = True
            if self.open:
                soon(self.flush)

    def close(self, reason: str = "closed") -> None:
        if self.gone or self.transport.dead:
            return
        other = self._send_waiting()
        self._leave(reason)
        if other is not None:
            other.put("closed by the peer")
            soon(other.drain)

    def flush(self) -> None:
        other = self._send_waiting()
        if other is not None:
            other.drain()

    def _send_waiting(self) -> _End | None:
        """Move the session's messages into the other end's inbox. Returns the other end, if it should drain it."""
        if self.gone or not self.open or self.transport.dead:
            return None
        other = self.other
        if self._waking and self.session is not None:
            self._waking = False
            messages = self.session.data_to_send()
            if other is not None and not other.gone:
                for frames in messages:
                    if not self.transport.network._lossy(self.endpoint):
                        other.put(list(frames))
        return other

    def put(self, item: list[Buffer] | str) -> None:
        """Add an item to the inbox; it is never due before earlier items."""
        network = self.transport.network
        delay_s = network._delays.get(self.endpoint, 0.0)
        if delay_s or self._due:
            self._due = max(self._due, network.clock.now() + delay_s)
            network.clock.call_at(self._due, Context().run, self.drain)
        self.inbox.append((self._due, item))

    def drain(self) -> None:
        """Deliver the items that are due."""
        network = self.transport.network
        while self.inbox and not self.gone and not self.transport.dead and not network._parted(self):
            due_at, item = self.inbox[0]
            if due_at and due_at > network.clock.now():
                return
            self.inbox.popleft()
            if isinstance(item, str):
                self._leave(item)
            else:
                self._receive(item)
        if not self.inbox:
            self._due = 0.0

    def _receive(self, frames: list[Buffer]) -> None:
        assert self.session is not None
        try:
            self.session.receive(frames)
        except ProtocolViolation as exc:
            log.warning("link.protocol_violated", peer=self.peer, reason=exc.message)
            self.close(f"protocol violation: {exc.message}")
        except Exception:
            log.exception("link.session_failed", peer=self.peer)
            self.close("the session failed")

    def _leave(self, reason: str) -> None:
        """End this side. The session gets `lost` in the next turn, so never inside one of its own calls."""
        if not self.gone:
            self.gone = True
            self.inbox.clear()
            soon(self._tell_lost, reason)

    def _tell_lost(self, reason: str) -> None:
        self.transport._ends.pop(self, None)
        if self.session is not None:
            self.session.lost(reason)

    def lose(self, reason: str) -> None:
        """The connection broke: nothing is flushed, and the other end is not notified."""
        if not self.transport.dead:
            self._leave(reason)

    def stand(self) -> None:
        """The connection is open: notify the session, then flush if there was a wake meanwhile."""
        if self.gone or self.session is None:
            return
        self.open = True
        self.session.opened()
        if self._waking:
            soon(self.flush)


class MemoryListener:
    """An endpoint of a `MemoryTransport`; the `Listener` of the contract."""

    def __init__(self, transport: MemoryTransport, endpoint: str, accept: MakeSession) -> None:
        self.endpoint = endpoint
        self._transport = transport
        self._accept = accept

    def admit(self, dialler: _End) -> None:
        """Connect `dialler` to a session of this side."""
        end = _End(self._transport, self.endpoint, f"dialler of {self.endpoint}", dialling=False)
        try:
            end.session = self._accept(end)
        except Exception:
            log.exception("link.not_accepted", endpoint=self.endpoint)
            self._transport._ends.pop(end, None)
            dialler.lose("closed by the peer")
            return
        end.other, dialler.other = dialler, end
        end.stand()
        dialler.stand()
        if end.gone:  # closed while its session was made
            dialler.put("closed by the peer")
            dialler.drain()

    async def close(self, linger_s: float = 0.0) -> None:
        if self._transport.network.listeners.get(self.endpoint) is self:
            del self._transport.network.listeners[self.endpoint]
        for end in self._transport._own(self.endpoint):
            end.close("listener closed")
        # Callbacks that `close` has scheduled run before this resumes.
        await asyncio.sleep(0)


class MemoryNetwork:
    """Connects several `MemoryTransport`s, and injects faults.

    Args:
        clock: the clock for delays and silence; real time when None.
        silence_s: how long a partition lasts before both sides of a connection across it get `lost`, and a dial across
            it fails; corresponds to the heartbeat timeout of a real network.
        event_high_water: how many events wait for one subscriber before further ones are dropped.
    """

    def __init__(self, clock: Clock | None = None, *, silence_s: float = 3.0, event_high_water: int = 10_000) -> None:
        self.clock: Clock = clock or LoopClock()
        self.silence_s = silence_s
        self.event_high_water = event_high_water
        self.listeners: dict[str, MemoryListener] = {}
        self.subscribers: dict[str, MemorySubscriber] = {}
        # Dicts instead of sets for their order: runs with the same seed must be identical.
        self._transports: dict[MemoryTransport, None] = {}
        self._names: set[str] = set()
        self._drops: dict[str, tuple[float, random.Random | None]] = {}
        self._delays: dict[str, float] = {}
        self._parties: set[str | MemoryTransport] = set()

    # --- fault injection --------------------------------------------------------------------------

    def drop(self, endpoint: str, share: float = 1.0, rng: random.Random | None = None) -> None:
        """Drop this share (0–1) of the messages and events to and from `endpoint`; a share below 1 needs `rng`."""
        if share < 1.0 and rng is None:
            raise ValueError("drop: a share below 1 needs a random.Random")
        self._drops[endpoint] = (share, rng)

    def delay(self, endpoint: str, seconds: float) -> None:
        """Delay messages and events to and from `endpoint` by `seconds` of the network's clock; order is kept."""
        self._delays[endpoint] = seconds

    def partition(self, *parties: str | MemoryTransport) -> None:
        """Separate each party from all others. Messages wait for `heal`; after `silence_s` connections are lost."""
        self._parties.update(parties)
        self.clock.call_at(self.clock.now() + self.silence_s, Context().run, self._fall_silent, frozenset(parties))

    def heal(self, *parties: str | MemoryTransport) -> None:
        """End drops, delays and partitions of these parties, or of all. Messages held back by a partition arrive."""
        for party in parties or (*self._drops, *self._delays, *self._parties):
            self._parties.discard(party)
            if isinstance(party, str):
                self._drops.pop(party, None)
                self._delays.pop(party, None)
        for end in self._ends():
            soon(end.drain)
            if end.dialling and end.other is None:
                soon(self._connect, end)

    def cut(self, endpoint: str, reason: str = "cut") -> int:
        """Break every connection to `endpoint`; both sides get `lost`. Returns how many there were."""
        broken = [end for end in self._ends() if end.endpoint == endpoint]
        for end in broken:
            end.lose(reason)
        return sum(end.dialling for end in broken)

    def kill(self, party: str | MemoryTransport) -> None:
        """End a process as kill -9 would: its peers get `lost`. Its own sessions get it only when its transport closes.
        Args:
            party: an endpoint on which the process listens, or its transport.
        """
        if isinstance(party, str):
            owner = self.listeners[party]._transport if party in self.listeners else self.subscribers[party]._transport
        else:
            owner = party
        ends = tuple(owner._ends)
        owner.dead = True
        for name in [name for name, listener in self.listeners.items() if listener._transport is owner]:
            del self.listeners[name]
        for subscriber in tuple(owner._subscribers):
            subscriber.close()
        for publisher in tuple(owner._publishers):
            publisher.close()
        for other in [end.other for end in ends if end.other is not None]:
            # Messages sent before still arrive, as from a kernel's buffer.
            other.put("the peer vanished")
            soon(other.drain)

    # --- called by transports ---------------------------------------------------------------------

    def _ends(self) -> Iterable[_End]:
        return [end for transport in self._transports for end in transport._ends if not end.gone]

    def _connect(self, dialler: _End) -> None:
        if dialler.gone or dialler.other is not None or dialler.transport.dead:
            return
        listener = self.listeners.get(dialler.endpoint)
        if self._blocked(dialler.endpoint, dialler.transport, listener._transport if listener else None):
            self.clock.call_at(self.clock.now() + self.silence_s, Context().run, self._give_up, dialler)
        elif listener is None:
            dialler.lose(f"refused: no process listens on {dialler.endpoint}")
        else:
            listener.admit(dialler)

    def _give_up(self, dialler: _End) -> None:
        if dialler.other is None:
            dialler.lose(f"timed out: {dialler.endpoint} did not answer within {self.silence_s:g} s")

    def _fall_silent(self, parties: frozenset[str | MemoryTransport]) -> None:
        if parties & self._parties:
            for end in self._ends():
                if end.other is not None and self._parted(end):
                    end.lose(f"timed out: no answer for {self.silence_s:g} s")

    def _parted(self, end: _End) -> bool:
        return bool(self._parties) and self._blocked(
            end.endpoint, end.transport, end.other.transport if end.other else None
        )

    def _blocked(self, endpoint: str, *transports: MemoryTransport | None) -> bool:
        return bool(self._parties) and not self._parties.isdisjoint((endpoint, *transports))

    def _lossy(self, endpoint: str) -> bool:
        share, rng = self._drops.get(endpoint, (0.0, None))
        return share >= 1.0 or (rng is not None and rng.random() < share)

    def _fresh(self, name: str) -> str:
        for number in itertools.count(1):
            endpoint = f"mem://{name}" if number == 1 else f"mem://{name}-{number}"
            if endpoint not in self._names:
                self._names.add(endpoint)
                return endpoint
        raise AssertionError("unreachable")


class MemoryTransport:
    """The `Transport` of the contract, for one simulated process in a test."""

    def __init__(self, network: MemoryNetwork | None = None) -> None:
        self.network = network or MemoryNetwork()
        #: Killed: nothing is sent or received any more.
        self.dead = False
        self._ends: dict[_End, None] = {}
        self._publishers: dict[MemoryPublisher, None] = {}
        self._subscribers: dict[MemorySubscriber, None] = {}
        self.network._transports[self] = None

    def dial(self, endpoint: str, make: MakeSession) -> _End:
        _check(endpoint)
        end = _End(self, endpoint, endpoint, dialling=True)
        try:
            end.session = make(end)
        except BaseException:
            self._ends.pop(end, None)
            raise
        soon(self.network._connect, end)
        return end

    async def listen(self, endpoint: str, accept: MakeSession) -> MemoryListener:
        self._check_free(endpoint)
        listener = self.network.listeners[endpoint] = MemoryListener(self, endpoint, accept)
        return listener

    def publisher(self) -> MemoryPublisher:
        publisher = MemoryPublisher(self)
        self._publishers[publisher] = None
        return publisher

    def subscriber(self, endpoint: str, on_event: Callable[[str, Buffer], None]) -> MemorySubscriber:
        self._check_free(endpoint)
        subscriber = self.network.subscribers[endpoint] = MemorySubscriber(self, endpoint, on_event)
        self._subscribers[subscriber] = None
        # Publishers that connected to the endpoint before it existed reach it now, as with libzmq.
        for transport in self.network._transports:
            for publisher in transport._publishers:
                soon(publisher._join, endpoint)
        return subscriber

    def endpoint(self, name: str) -> str:
        return self.network._fresh(name)

    async def close(self) -> None:
        self.dead, was_dead = False, self.dead
        for listener in [mine for mine in self.network.listeners.values() if mine._transport is self]:
            await listener.close()
        for end in tuple(self._ends):
            if was_dead:
                end.lose("killed")
            else:
                end.close("transport closed")
        for publisher in tuple(self._publishers):
            publisher.close()
        for subscriber in tuple(self._subscribers):
            subscriber.close()
        await asyncio.sleep(0)
        self.network._transports.pop(self, None)

    def _own(self, endpoint: str) -> list[_End]:
        return [end for end in self._ends if end.endpoint == endpoint and not end.dialling]

    def _check_free(self, endpoint: str) -> None:
        _check(endpoint)
        if endpoint in self.network.listeners or endpoint in self.network.subscribers:
            raise AddressInUse(f"{endpoint} is already in use: close its listener, or choose another name")


def _check(endpoint: str) -> None:
    if endpoints.parse(endpoint).kind != "mem":
        raise BadEndpoint(f"{endpoint!r} is not an endpoint in memory: this transport supports mem://name only")
