"""The ZeroMQ transport: combines the context, sockets and addresses.

Owns: the context, binding without taking over a live endpoint, and closing everything.
Leaves to others: each kind of socket (dealer, router, pubsub), what the frames mean (protocol).
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import zmq

from mesh.config import Settings
from mesh.errors import AddressInUse, BadEndpoint, SetupError
from mesh.protocol.codec import MAX_FRAME
from mesh.telemetry.metrics import Recorder
from mesh.transport.advertise import advertised
from mesh.transport.connections import Connections
from mesh.transport.contract import Buffer, Listener, MakeSession, Publisher, Subscriber
from mesh.transport.curve.guard import Guard
from mesh.transport.curve.key_ring import Keyring, ring_for
from mesh.transport.curve.links import Expectation, check_exposed, dress_listener, with_key
from mesh.transport.curve.zap import Zap
from mesh.transport.dealer import PARTING_LOOK_S, DealerChannel, Knock, Parting
from mesh.transport.endpoints import Claim, Endpoint, ensure_run_dir, parse, sweep
from mesh.transport.monitor import ACCEPTING, Monitor
from mesh.transport.pressure import Pressure
from mesh.transport.pubsub import ZmqPublisher, ZmqSubscriber
from mesh.transport.refusals import Refusals
from mesh.transport.router import RouterListener
from mesh.transport.sockets import Context, LinkOptions, Socket, make
from mesh.transport.strangers import Strangers

#: A monitored link uses three sockets of a context; libzmq's default of 1,023 would allow only 340 links.
MAX_SOCKETS = 65_535
#: The largest message of a hub, in bytes: its own limit (discovery.admission) with a margin.
LARGEST_SNAPSHOT = 64 * 1024 * 1024
#: The largest frame that a hub accepts: discovery.hub.MAX_MESSAGE with a margin.
LARGEST_REGISTER = 5 * 1024 * 1024
#: The largest frame of an event: protocol.codec.MAX_FRAME with a margin.
LARGEST_EVENT = 3 * 1024 * 1024


class ZmqTransport:
    """See contract.Transport.

    Args:
        run_dir: the directory of ipc sockets; made with mode 0700, refused when others may write to it.
        bind: "ipc", or "tcp://host:*" to listen on the network.
        options: heartbeats, limits and time-outs of every link.
        ring: this process's keys; with them every tcp link uses CURVE, without them tcp is limited to this host.
        recorder: counts refused links.
        advertise: (endpoint as bound) -> the endpoint to advertise; see advertise.advertised.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        bind: str = "ipc",
        options: LinkOptions | None = None,
        ring: Keyring | None = None,
        recorder: Recorder | None = None,
        advertise: Callable[[str], str] = lambda bound: bound,
    ) -> None:
        self._run_dir = run_dir
        self._bind = bind
        self._options = options or LinkOptions()
        self._context: Context = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, MAX_SOCKETS)
        self._names = itertools.count(1)
        self._owned: set[DealerChannel | Parting | RouterListener | ZmqPublisher | ZmqSubscriber] = set()
        self._closing = False
        self._swept = False
        self._ring = ring
        self._advertise = advertise
        self._refusals = Refusals(recorder)
        self._pressure = Pressure()
        self._zap: Zap | None = None
        self._unfollow: Callable[[], None] | None = None

    def endpoint(self, name: str) -> str:
        if self._bind != "ipc":
            return self._bind
        return f"ipc://{ensure_run_dir(self._run_dir)}/{name}-{os.getpid()}-{next(self._names)}.sock"

    def dial(self, endpoint: str, make_session: MakeSession) -> DealerChannel:
        where = parse(endpoint, dialling=True)
        self._check_open()
        expected = Expectation(where, self._ring)
        channel = DealerChannel(
            self._context,
            endpoint,
            make_session,
            self._options,
            self._owned.discard,
            self._owned.add,
            expected,
            self._refusals,
            self._pressure,
        )
        self._owned.add(channel)
        return channel

    async def listen(self, endpoint: str, accept: MakeSession) -> Listener:
        self._check_open()
        where = parse(endpoint)
        socket = make(self._context, zmq.ROUTER, self._options, endpoint)
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        socket.setsockopt(zmq.MAXMSGSIZE, self._options.largest_received)
        listener: RouterListener | None = None
        strangers = Strangers(self._ring, self._refusals)

        def heard(event: int, value: int, at: str) -> None:
            strangers.heard(monitor, event, value, at)
            if listener is not None:
                listener.heard(event, value, at)

        monitor = Monitor(socket, heard, ACCEPTING)
        try:
            bound, told, claim = self._bind_socket(socket, where)
        except BaseException:
            monitor.close()
            socket.close()
            raise
        guard = self._guard(bound)
        listener = RouterListener(
            socket,
            with_key(told, self._ring),
            accept,
            self._options,
            claim,
            self._owned.discard,
            guard,
            Connections(parse(bound), all_speak=True),
            self._pressure,
        )
        listener.watch(monitor)
        self._owned.add(listener)
        return listener

    def publisher(self) -> Publisher:
        self._check_open()
        publisher = ZmqPublisher(
            self._context, self._options, self._owned.discard, self._ring, self._refusals, self._knock
        )
        self._owned.add(publisher)
        return publisher

    def _knock(self, endpoint: str) -> None:
        if not self._closing:
            self.dial(endpoint, lambda _: Knock())

    def subscriber(self, endpoint: str, on_event: Callable[[str, Buffer], None]) -> Subscriber:
        self._check_open()
        where = parse(endpoint)
        socket = make(self._context, zmq.SUB, self._options, endpoint)
        socket.setsockopt(zmq.MAXMSGSIZE, LARGEST_EVENT)
        guard: Guard | None = None
        connections: Connections | None = None
        strangers = Strangers(self._ring, self._refusals)

        def heard(event: int, value: int, at: str) -> None:
            strangers.heard(monitor, event, value, at)
            if guard is not None:
                guard.heard(event, value)
            if connections is not None:
                connections.heard(event, value)

        monitor = Monitor(socket, heard, ACCEPTING)
        try:
            bound, told, claim = self._bind_socket(socket, where)
        except BaseException:
            monitor.close()
            socket.close()
            raise
        guard = self._guard(bound)
        connections = Connections(parse(bound), all_speak=False)
        subscriber = ZmqSubscriber(
            socket,
            with_key(told, self._ring),
            on_event,
            claim,
            self._owned.discard,
            guard,
            monitor,
            connections,
            self._pressure,
            LARGEST_EVENT,
        )
        self._owned.add(subscriber)
        return subscriber

    def _guard(self, bound: str) -> Guard | None:
        """The guard of a socket with this endpoint; None when it uses no keys."""
        if self._ring is None or not bound.startswith("tcp://"):
            return None
        return Guard(self._ring, bound)

    def _bind_socket(self, socket: Socket, where: Endpoint) -> tuple[str, str, Claim | None]:
        """Bind without taking over a live endpoint. Returns the endpoint as bound, the one to advertise, and the claim
        to an ipc path."""
        endpoint = where.where
        check_exposed(where, self._ring)
        claim: Claim | None = None
        if where.kind == "ipc":
            directory = ensure_run_dir(Path(where.address).parent)
            if not self._swept:
                # Remove the sockets that killed processes have left behind.
                self._swept = True
                sweep(directory)
            claim = Claim.take(where.address)
        elif where.kind != "tcp":
            raise BadEndpoint(f"{endpoint!r}: the ZeroMQ transport listens on ipc:// and tcp:// only")
        elif self._ring is not None:
            dress_listener(socket, self._ring)
        try:
            socket.bind(endpoint)
        except zmq.ZMQError as exc:
            if claim is not None:
                claim.release()
            if exc.errno == zmq.EADDRINUSE:
                raise AddressInUse(
                    f"{endpoint}: another process listens there: stop it, or choose another port"
                ) from exc
            raise BadEndpoint(f"{endpoint}: cannot be bound: {exc.strerror}") from exc
        last: Any = socket.getsockopt(zmq.LAST_ENDPOINT)
        bound = last.rstrip(b"\0").decode()
        return bound, self._advertise(bound), claim

    async def _parting(self) -> None:
        """Wait for closed links with messages still on their way: see dealer.Parting."""
        while any(isinstance(owned, Parting) for owned in self._owned):  # noqa: ASYNC110  # they end by timers
            await asyncio.sleep(PARTING_LOOK_S)

    def _follow_keys(self, ring: Keyring) -> None:
        """Start the ZAP handler and follow changes of the keys. Called before the first socket with keys; harmless when
        called again."""
        if self._unfollow is None:
            self._unfollow = ring.on_change(self._keys_changed)
            ring.watch()
        if self._zap is None:
            self._zap = Zap(self._context, ring, self._refusals)

    def _keys_changed(self, fewer: bool) -> None:
        for owned in list(self._owned):
            # A new key may make a subscriber reachable; other owners need to act only when a key became invalid.
            if fewer or isinstance(owned, ZmqPublisher):
                owned.keys_changed()

    def _check_open(self) -> None:
        if self._closing:
            raise SetupError("the transport is closed")
        if self._ring is not None:
            self._follow_keys(self._ring)

    async def close(self) -> None:
        if self._closing:
            return
        self._closing = True
        for owned in list(self._owned):
            if isinstance(owned, RouterListener):
                await owned.close()
            else:
                owned.close()
        await self._parting()
        self._pressure.close()
        if self._unfollow is not None:
            self._unfollow()
        if self._ring is not None:
            self._ring.close()
        if self._zap is not None:
            self._zap.close()
        # Waits for lingering sockets, at most LinkOptions.linger_s (or the linger time of a closed listener).
        await asyncio.get_running_loop().run_in_executor(None, self._context.term)


def from_settings(settings: Settings, role: str = "client", recorder: Recorder | None = None) -> ZmqTransport:
    """The transport by the configuration, for a process of this role, which selects the process's key.

    Raises:
        BadKeys: keys.dir is set, and it has no usable key for this role.
    """
    links = settings.links
    return ZmqTransport(
        settings.mesh.run_dir,
        bind=settings.mesh.bind,
        ring=ring_for(settings.keys, role, settings.mesh.host),
        recorder=recorder,
        advertise=partial(advertised, named=settings.mesh.advertise, hubs=() if role == "hub" else settings.mesh.hubs),
        options=LinkOptions(
            heartbeat_s=links.heartbeat_s,
            heartbeat_timeout_s=links.heartbeat_timeout_s,
            connect_timeout_s=links.connect_timeout_s,
            # A frame is one body, a hub's snapshot, or many small messages that a writer has sealed.
            max_message_bytes=max(settings.calls.max_body_bytes, LARGEST_SNAPSHOT) + (1 << 20),
            # Only a hub that was dialled sends snapshots.
            max_received_bytes=max(LARGEST_REGISTER, settings.discovery.record_bytes + (1 << 20))
            if role == "hub"
            else max(settings.calls.max_body_bytes, MAX_FRAME) + (1 << 20),
        ),
    )
