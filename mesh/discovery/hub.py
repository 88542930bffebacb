"""The hub: a registry served to the processes of the mesh.

Owns: connections of peers, the handling of each message, batching the changes of one loop turn for watchers.
Leaves to others: leases and news (registry), validation of records (admission), bytes (protocol.codec, transport).

A hub holds no durable data. While it is down, everything that runs continues; after a restart, all instances register
again within one lease.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

import msgspec

from mesh.clock import Clock, Timer
from mesh.discovery.admission import NAME_CHARS, Limits, read_records
from mesh.discovery.record import Instance
from mesh.discovery.registry import Counts, News, Registry
from mesh.discovery.shapes import Shapes
from mesh.errors import Forbidden, MeshError, ProtocolViolation, SetupError, TooLarge
from mesh.policy.access import Access, name_of
from mesh.protocol.allowance import FRAME, Allowance, Flood
from mesh.protocol.codec import Reader, Writer
from mesh.protocol.link import ACCEPTOR, CONNECTED, LOST, Link, check_version, step
from mesh.protocol.messages import (
    CHANGE,
    GOODBYE,
    HELLO,
    LEARNED,
    LEAVE,
    LOADS,
    PING,
    PONG,
    REGISTER,
    REGISTERED,
    REJECT,
    RENEW,
    SNAPSHOT,
    UNKNOWN,
    VERSION,
    WATCH,
    WELCOME,
)
from mesh.telemetry.logs import get_logger
from mesh.transport.contract import Buffer, Channel, Listener, Transport

log = get_logger("mesh.discovery")

#: The largest message that a hub accepts: far above a legitimate register, which agents send in pieces of 512 KiB.
MAX_MESSAGE: Final = 4 * 1024 * 1024


class HubStats(msgspec.Struct, frozen=True):
    """The state of a hub, for pages and metrics."""

    identity: str
    epoch: int
    endpoint: str
    learning: bool
    number: int
    instances: int
    links: int
    watchers: int
    counts: Counts


class Hub:
    """One registry, served on one endpoint. Any number of hubs may run, independently of each other."""

    def __init__(
        self,
        transport: Transport,
        clock: Clock,
        *,
        identity: str,
        epoch: int,
        lease_s: float = 5.0,
        learn_s: float | None = None,
        limits: Limits | None = None,
        access: Access | None = None,
    ) -> None:
        """Args:
        identity, epoch: name of this hub, and when it started (ids.epoch).
        lease_s: how long a registration is valid without a renewal.
        learn_s: how long after its start no instance is declared gone; one lease when None.
        access: which workers may run which services; None allows all.
        """
        self.identity = identity
        self.epoch = epoch
        self.limits = limits or Limits()
        self.access = access
        self.endpoint = ""
        self._transport = transport
        self._clock = clock
        self._lease_s = lease_s
        self._learn_s = learn_s
        self.registry = self._fresh()
        self.shapes = Shapes()
        self._listener: Listener | None = None
        self._ticking: Timer | None = None
        self._telling: asyncio.Handle | None = None
        # Dicts instead of sets for their order: a simulation with the same seed must have the same result.
        self._peers: dict[Peer, None] = {}
        self._watchers: dict[Peer, None] = {}
        self._newcomers: dict[Peer, None] = {}

    def _fresh(self) -> Registry:
        return Registry(now=self._clock.now(), lease_s=self._lease_s, learn_s=self._learn_s, limits=self.limits)

    async def start(self, endpoint: str) -> str:
        """Listen, and begin to learn.

        Returns:
            The endpoint as bound.

        Raises:
            AddressInUse, BadEndpoint: as Transport.listen.
        """
        if self._listener is not None:
            raise SetupError(f"hub {self.identity} was already started, on {self.endpoint}")
        self._listener = await self._transport.listen(endpoint, self._accept)
        self.endpoint = self._listener.endpoint
        self.registry = self._fresh()
        self._tick()
        return self.endpoint

    async def stop(self, linger_s: float = 0.5) -> None:
        """Send goodbye and close. Peers keep their tables."""
        if self._ticking is not None:
            self._ticking.cancel()
            self._ticking = None
        listener, self._listener = self._listener, None
        if listener is None:
            return
        for peer in list(self._peers):
            peer.say(GOODBYE, "the hub is stopping")
        await listener.close(linger_s)
        if self._telling is not None:
            self._telling.cancel()
            self._telling = None

    def stats(self) -> HubStats:
        registry = self.registry
        return HubStats(
            identity=self.identity,
            epoch=self.epoch,
            endpoint=self.endpoint,
            learning=registry.learning,
            number=registry.number,
            instances=len(registry),
            links=len(self._peers),
            watchers=len(self._watchers),
            counts=msgspec.structs.replace(registry.counts),
        )

    # --- peers and ticks --------------------------------------------------------------------------

    def _accept(self, channel: Channel) -> Peer:
        peer = Peer(self, channel)
        self._peers[peer] = None
        return peer

    def now(self) -> float:
        return self._clock.now()

    def _tick(self) -> None:
        self.registry.tick(self._clock.now())
        self.tell_soon()
        self._ticking = self._clock.call_at(self._clock.now() + self.registry.tick_s, self._tick)

    def watch(self, peer: Peer) -> None:
        """Send `peer` a snapshot, then news. Also called by a peer that has missed a change."""
        self._watchers.pop(peer, None)
        self._newcomers[peer] = None
        self.tell_soon()

    def forget(self, peer: Peer) -> None:
        """The connection was lost. Its leases stay until they expire, as the peer may reconnect."""
        for group in (self._peers, self._watchers, self._newcomers):
            group.pop(peer, None)

    def tell_soon(self) -> None:
        """Notify the watchers once about all changes of this turn of the loop."""
        if self._telling is None and (self.registry.has_news or self._newcomers):
            self._telling = asyncio.get_running_loop().call_soon(self._tell)

    def _tell(self) -> None:
        self._telling = None
        news = self.registry.take_news()
        if news:
            for peer in self._watchers:
                peer.tell(news)
        if self._newcomers:
            newcomers, self._newcomers = self._newcomers, {}
            # The snapshot includes the news just taken, and is encoded once for all newcomers of this turn.
            body = self.registry.snapshot()
            for peer in newcomers:
                self._watchers[peer] = None
                peer.tell_all(self.registry.number, self.registry.learning, body)


class Peer:
    """One connection to the hub; the `Session` of the transport's contract."""

    def __init__(self, hub: Hub, channel: Channel) -> None:
        self.name = channel.peer
        self._holder = ""
        self._hub = hub
        self._channel = channel
        self._link = Link.CONNECTING
        self._reader = Reader()
        self._writer = Writer()
        self._sealed: list[list[Buffer]] = []
        self._largest = 0
        self._hears_loads = False
        self._allowance = Allowance()

    # --- Session ----------------------------------------------------------------------------------

    def opened(self) -> None:
        self._link = step(ACCEPTOR, self._link, CONNECTED)

    def receive(self, frames: list[Buffer]) -> None:
        try:
            messages = self._reader.read(frames)
            # A message registers, renews or ends up to a thousand leases; a process sends one or two per second.
            if not self._allowance.take(len(messages) + FRAME, self._hub.now()):
                raise Flood("more messages than a process may send to a hub")
            for message in messages:
                act = ACTS.get((self._link, message[0]))
                if act is None:
                    self._link = step(ACCEPTOR, self._link, message[0])
                else:
                    act(self, message)
        except ProtocolViolation as violation:
            # The transport logs the violation and closes the connection; this tells the peer why.
            self.say(REJECT, violation.code, violation.message[:500])
            raise
        except MeshError as refusal:
            log.warning("peer.refused", peer=self.name, reason=refusal.message)
            self.say(REJECT, refusal.code, refusal.message[:500])
            self._channel.close(refusal.message)

    def data_to_send(self) -> list[list[Buffer]]:
        sealed, self._sealed = self._sealed, []
        return [*sealed, *self._writer.take()]

    def lost(self, reason: str) -> None:
        self._link = step(ACCEPTOR, self._link, LOST)
        self._hub.forget(self)

    # --- sending ----------------------------------------------------------------------------------

    def say(self, *message: Any) -> None:
        self._writer.add(*message)
        self._channel.wake()

    def tell(self, news: list[News]) -> None:
        """Send news."""
        for item in news:
            if item.learned:
                self._writer.add(LEARNED, item.number)
            elif item.loads:
                if self._hears_loads:
                    self._writer.add_body((LOADS,), item.loads)
            else:
                self._writer.add_body((CHANGE, item.number), item.records, (item.gone,))
                # A frame is limited but the writer counts only bodies: begin a new frame after each long list.
                if len(item.gone) > 64:
                    self._sealed += self._writer.take()
        self._channel.wake()

    def tell_all(self, number: int, learning: bool, body: bytes) -> None:
        """Send a snapshot."""
        hub = self._hub
        if len(body) > self._largest:
            refusal = TooLarge(f"the snapshot has {len(body)} bytes; {self.name} accepts at most {self._largest}")
            self.say(REJECT, refusal.code, refusal.message)
            self._channel.close(refusal.message)
            return
        self._writer.add_body((SNAPSHOT, hub.identity, hub.epoch, number, learning), body)
        self._channel.wake()

    # --- messages from the peer ---------------------------------------------------------------------

    def _greet(self, message: list[Any]) -> None:
        check_version(message)
        identity = message[2]
        if not 1 <= len(identity) <= NAME_CHARS or not identity.isprintable():
            raise ProtocolViolation(f"hello: identity must be 1 to {NAME_CHARS} printable characters")
        self._link = step(ACCEPTOR, self._link, HELLO)
        self.name = identity
        # An identity is only a claim: with keys, the holder of leases is the proven key name and the identity.
        self._holder = f"{self._channel.user}/{identity}" if self._channel.user else identity
        self._largest = message[4]
        meta = (message[5] if len(message) > 5 else None) or {}
        self._hears_loads = "loads" in meta.get("hears", "").split()
        hub = self._hub
        about = {"role": "hub", "lease_ms": str(_ms(hub.registry.lease_s))}
        self.say(WELCOME, VERSION, hub.identity, hub.epoch, 0, MAX_MESSAGE, about)

    def _register(self, message: list[Any]) -> None:
        _, request, body = message
        hub = self._hub
        records = read_records(body, hub.limits, hub.shapes)
        if hub.access is not None:
            self._check_serving(hub.access, records)
        hub.registry.register(self._holder, records, hub.now())
        self.say(REGISTERED, request, _ms(hub.registry.lease_s), _ms(hub.registry.renew_s))
        hub.tell_soon()

    def _check_serving(self, access: Access, records: list[Instance]) -> None:
        worker = name_of(self._channel.user, self.name)
        for record in records:
            if not access.may_serve(worker, record.service):
                raise Forbidden(
                    f"{worker[:100]!r} may not run {record.service!r}: no [[access.serve]] of {self._hub.identity} "
                    f"allows it"
                )

    def _renew(self, message: list[Any]) -> None:
        unknown = self._hub.registry.renew(self._holder, message[1], self._hub.now())
        if unknown:
            self.say(UNKNOWN, unknown)
        self._hub.tell_soon()

    def _leave(self, message: list[Any]) -> None:
        self._hub.registry.leave(self._holder, message[1])
        self._hub.tell_soon()

    def _watch(self, _message: list[Any]) -> None:
        self._hub.watch(self)

    def _ping(self, message: list[Any]) -> None:
        self.say(PONG, message[1])


#: Messages that a hub handles beyond the link's own table (protocol.link.ACCEPTOR); all others are violations.
ACTS: Final[dict[tuple[Link, int], Callable[[Peer, list[Any]], None]]] = {
    (Link.GREETING, HELLO): Peer._greet,
    (Link.OPEN, REGISTER): Peer._register,
    (Link.OPEN, RENEW): Peer._renew,
    (Link.OPEN, LEAVE): Peer._leave,
    (Link.OPEN, WATCH): Peer._watch,
    (Link.OPEN, PING): Peer._ping,
}


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))
