"""Events over PUB/SUB: an XPUB that connects to the SUB that each subscriber binds.

Owns: the two sockets, and detecting when a subscriber's subscriptions have arrived.
Leaves to others: finding subscribers (discovery), what an event is (events).

The publisher connects, not the subscriber: it knows the subscribers from the registry, and a short-lived process can
publish without having to be discovered first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

import zmq

from mesh.telemetry.logs import get_logger
from mesh.transport.connections import Connections
from mesh.transport.contract import Buffer
from mesh.transport.curve.guard import Guard
from mesh.transport.curve.key_ring import Keyring
from mesh.transport.curve.links import Expectation, dress_dialler
from mesh.transport.endpoints import Claim, Endpoint, parse
from mesh.transport.monitor import Monitor
from mesh.transport.pressure import Pressure
from mesh.transport.refusals import Refusals
from mesh.transport.sockets import Context, Edge, LinkOptions, Socket, allow_ipv6, make

log = get_logger("mesh.transport")

#: A subscriber also subscribes to its own address with this byte in front. A SUB announces its subscriptions in the
#: order of their bytes, and 0xff is in no UTF-8 topic: when the token has arrived, all others have.
TOKEN = b"\xff"
#: Events that may wait for one subscriber; further ones are dropped, and the subscriber counts the gaps.
HIGH_WATER = 10_000
#: How long a subscriber counts events by connection after the counts were requested.
COUNTING_S = 1.0


class ZmqPublisher:
    """See contract.Publisher."""

    def __init__(
        self,
        context: Context,
        options: LinkOptions,
        forget: Callable[[ZmqPublisher], None],
        ring: Keyring | None,
        refusals: Refusals,
        knock: Callable[[str], object],
    ) -> None:
        """`knock(endpoint)` makes both ends log that this process does not trust the listener."""
        self._forget = forget
        self._options = options
        self._ring = ring
        self._refusals = refusals
        self._knock = knock
        #: The endpoints passed to `connect`; and those connected in libzmq, by their address without the key.
        self._wanted: dict[str, None] = {}
        self._connected: dict[str, tuple[str, Expectation]] = {}
        self._joined: set[str] = set()
        self._socket = make(context, zmq.XPUB, options)
        # IMMEDIATE ends a pipe with its connection: `joined` becomes false, and no stale events wait for a reconnect.
        self._socket.setsockopt(zmq.IMMEDIATE, 1)
        self._socket.setsockopt(zmq.SNDHWM, HIGH_WATER)
        self._socket.setsockopt(zmq.RECONNECT_IVL, 100)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, 2000)
        # A monitor costs two sockets, and is needed only to report handshakes that fail because of keys.
        self._monitor = Monitor(self._socket, self._heard) if ring is not None else None
        self._edge = Edge(self._socket, self._read)

    def connect(self, endpoint: str) -> None:
        where = parse(endpoint, dialling=True)
        if endpoint not in self._wanted:
            self._wanted[endpoint] = None
            self._reach(endpoint, where)

    def _reach(self, endpoint: str, where: Endpoint) -> None:
        expected = Expectation(where, self._ring)
        if expected.trouble:
            self._knock(endpoint)
            return
        # libzmq has one connection per address: an endpoint with a newer key replaces the one with the older key.
        if where.where in self._connected:
            self._leave(self._connected[where.where][0])
        allow_ipv6(self._socket, where.where)
        if expected.keys and self._ring is not None:
            dress_dialler(self._socket, self._ring, expected.keys[0].public)
        self._socket.connect(where.where)
        self._connected[where.where] = (endpoint, expected)
        self._edge.look()  # connecting consumes edges too

    def disconnect(self, endpoint: str) -> None:
        if endpoint in self._wanted:
            del self._wanted[endpoint]
            self._leave(endpoint)

    def _leave(self, endpoint: str) -> None:
        where = parse(endpoint).where
        self._joined.discard(endpoint)
        if self._connected.get(where, ("",))[0] == endpoint:
            del self._connected[where]
            try:
                self._socket.disconnect(where)
            except zmq.ZMQError as exc:  # its connection ended by itself
                log.debug("subscriber.disconnect_failed", endpoint=endpoint, reason=str(exc))

    def keys_changed(self) -> None:
        """Disconnect subscribers with keys that are no longer valid, and connect those with newly valid keys."""
        if self._socket.closed:
            return
        for endpoint, expected in list(self._connected.values()):
            if any(not expected.valid(key) for key in expected.keys):
                log.warning("subscriber.key_invalid", endpoint=expected.where.where)
                self._leave(endpoint)
        reached = {endpoint for endpoint, _ in self._connected.values()}
        for endpoint in self._wanted:
            where = parse(endpoint)
            if endpoint not in reached and where.where not in self._connected:
                self._reach(endpoint, where)

    def _heard(self, event: int, value: int, endpoint: str) -> None:
        known = self._connected.get(endpoint)
        if known is None or not known[1].keys:
            return
        name, expected = known
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._refusals.over(name)
        elif (explained := expected.explain(event, value, expected.keys[0])) is not None and explained[0]:
            self._refusals.note(explained[0], name, explained[1], endpoint=endpoint)

    def joined(self, endpoint: str) -> bool:
        self._edge.look()
        return endpoint in self._joined

    def send(self, topic: str, frame: Buffer) -> None:
        self._socket.send(topic.encode(), zmq.NOBLOCK | zmq.SNDMORE)
        self._socket.send(frame, zmq.NOBLOCK)
        self._edge.look()

    def _read(self) -> None:
        """Read one subscription: a byte (1 to subscribe, 0 to unsubscribe), then the prefix."""
        note = self._socket.recv(zmq.NOBLOCK)
        if note[1:2] == TOKEN:
            endpoint = note[2:].decode("utf-8", "replace")
            if note[0] == 1:
                self._joined.add(endpoint)
                if self._ring is not None:
                    # Only this subscriber subscribes to its token. The message lets its guard identify the connection.
                    self._socket.send_multipart((note[1:], b""), zmq.NOBLOCK)
            else:
                self._joined.discard(endpoint)

    def close(self) -> None:
        if not self._socket.closed:
            self._edge.close()
            if self._monitor is not None:
                self._monitor.close()
            self._socket.close(linger=int(self._options.linger_s * 1000))
            self._forget(self)


class ZmqSubscriber:
    """See contract.Subscriber."""

    def __init__(
        self,
        socket: Socket,
        endpoint: str,
        on_event: Callable[[str, Buffer], None],
        claim: Claim | None,
        forget: Callable[[ZmqSubscriber], None],
        guard: Guard | None,
        monitor: Monitor,
        connections: Connections,
        pressure: Pressure,
        largest: int,
    ) -> None:
        """Take over a bound SUB socket with its monitor, and its guard if it uses keys."""
        self.endpoint = endpoint
        self._socket = socket
        self._on_event = on_event
        self._claim = claim
        self._forget = forget
        self._guard = guard
        self._monitor = monitor
        self._connections = connections
        self._pressure = pressure
        self.largest = largest
        #: Descriptor -> events received from it. A SUB does not know its peers, so this is counted only on request.
        self._counts: dict[int, int] = {}
        self._counting_until = 0.0
        self._loop = asyncio.get_running_loop()
        socket.subscribe(TOKEN + endpoint.encode())
        self._edge = Edge(socket, self._read if guard is None else self._read_guarded)
        pressure.watch(self)

    def subscribe(self, prefix: str) -> None:
        self._socket.subscribe(prefix.encode())

    def unsubscribe(self, prefix: str) -> None:
        self._socket.unsubscribe(prefix.encode())

    def _read(self) -> None:
        if self._counting_until:
            self._read_counted()
        else:
            self._take(self._socket.recv_multipart(zmq.NOBLOCK))

    def _read_counted(self) -> None:
        frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
        self._count(frames[0])
        self._take([frame.bytes for frame in frames])

    def _count(self, frame: zmq.Frame) -> None:
        with suppress(zmq.ZMQError, TypeError, ValueError):
            fd = int(frame.get(zmq.SRCFD))
            self._counts[fd] = self._counts.get(fd, 0) + 1
        if self._loop.time() > self._counting_until:
            self._counting_until = 0.0

    # --- called by the pressure watch ---------------------------------------------------------------------

    def intake(self) -> dict[int, int]:
        self._counting_until = self._loop.time() + COUNTING_S
        return {fd: self._counts.get(fd, 0) for fd in self._connections.descriptors}

    @property
    def unread(self) -> bool:
        return self._edge.unread

    def relieve(self, fd: int, reason: str) -> None:
        """Cut a connection. Its publisher reconnects by itself; events sent meanwhile are a gap."""
        log.warning("link.memory_exceeded", endpoint=self.endpoint, reason=reason)
        self._counts.pop(fd, None)
        self._connections.cut(fd)

    def _read_guarded(self) -> None:
        """Read one message and check its sender's key; for each message, as a SUB does not know its peers."""
        assert self._guard is not None
        frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
        if self._guard.sender(frames[0]) is None:
            return
        if self._counting_until:
            self._count(frames[0])
        parts = [frame.bytes for frame in frames]
        if parts[0][:1] != TOKEN:  # a publisher's greeting, which only serves the guard
            self._take(parts)

    def keys_changed(self) -> None:
        """Close the connections of publishers with keys that are no longer valid."""
        if self._guard is not None and not self._socket.closed:
            self._guard.keys_changed()

    def _take(self, frames: list[bytes]) -> None:
        if len(frames) != 2:
            log.warning("event.malformed", frames=len(frames))
            return
        try:
            topic = frames[0].decode()
        except UnicodeDecodeError:
            log.warning("event.topic_unreadable")
            return
        self._on_event(topic, frames[1])

    def close(self) -> None:
        if not self._socket.closed:
            self._pressure.forget(self)
            self._connections.close()
            self._edge.close()
            self._monitor.close()
            self._socket.close(linger=0)
            if self._claim is not None:
                self._claim.release()
            self._forget(self)
