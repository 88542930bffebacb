"""Events to everyone: an XPUB that connects to the SUB that each subscriber binds.

Owns: the two sockets, and knowing when a subscriber's subscriptions have arrived.
Leaves to others: who the subscribers are (discovery), what an event is (events).

The publisher connects, not the subscriber: it learns of subscribers from the registry, and a short-lived process can
publish without anybody having to find it first.
"""

from __future__ import annotations

from collections.abc import Callable

import zmq

from mesh.telemetry.logs import get_logger
from mesh.transport.contract import Buffer
from mesh.transport.endpoints import Claim, parse
from mesh.transport.sockets import Context, Edge, LinkOptions, Socket, allow_ipv6, make

log = get_logger("mesh.transport")

#: A subscriber also subscribes to its own address behind this byte. A SUB announces its subscriptions in the order
#: of their bytes, and 0xff is in no UTF-8 topic: when the token has arrived, all the others have.
TOKEN = b"\xff"
#: Events that may wait for one subscriber before it loses some; gaps are counted at its end.
HIGH_WATER = 10_000


class ZmqPublisher:
    """See contract.Publisher."""

    def __init__(self, context: Context, options: LinkOptions, forget: Callable[[ZmqPublisher], None]) -> None:
        self._forget = forget
        self._options = options
        self._connected: set[str] = set()
        self._joined: set[str] = set()
        self._socket = make(context, zmq.XPUB, options)
        # A pipe ends with its connection: `joined` is then taken back, and nothing stale waits for the next subscriber.
        self._socket.setsockopt(zmq.IMMEDIATE, 1)
        self._socket.setsockopt(zmq.SNDHWM, HIGH_WATER)
        self._socket.setsockopt(zmq.RECONNECT_IVL, 100)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, 2000)
        self._edge = Edge(self._socket, self._read)

    def connect(self, endpoint: str) -> None:
        parse(endpoint, dialling=True)
        if endpoint not in self._connected:
            allow_ipv6(self._socket, endpoint)
            self._socket.connect(endpoint)
            self._connected.add(endpoint)
            self._edge.look()  # connecting, too, consumes edges

    def disconnect(self, endpoint: str) -> None:
        if endpoint in self._connected:
            self._connected.discard(endpoint)
            self._joined.discard(endpoint)
            try:
                self._socket.disconnect(endpoint)
            except zmq.ZMQError as exc:  # its connection ended by itself
                log.debug("disconnect", endpoint=endpoint, reason=str(exc))

    def joined(self, endpoint: str) -> bool:
        self._edge.look()
        return endpoint in self._joined

    def send(self, topic: str, frame: Buffer) -> None:
        self._socket.send(topic.encode(), zmq.NOBLOCK | zmq.SNDMORE)
        self._socket.send(frame, zmq.NOBLOCK)
        self._edge.look()

    def _read(self) -> None:
        """Take one subscription: a byte, 1 for joining and 0 for leaving, and the prefix."""
        note = self._socket.recv(zmq.NOBLOCK)
        if note[1:2] == TOKEN:
            endpoint = note[2:].decode("utf-8", "replace")
            if note[0] == 1:
                self._joined.add(endpoint)
            else:
                self._joined.discard(endpoint)

    def close(self) -> None:
        if not self._socket.closed:
            self._edge.close()
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
    ) -> None:
        """Takes over a SUB socket that is bound already."""
        self.endpoint = endpoint
        self._socket = socket
        self._on_event = on_event
        self._claim = claim
        self._forget = forget
        self._counts: dict[str, int] = {}
        socket.subscribe(TOKEN + endpoint.encode())
        self._edge = Edge(socket, self._read)

    def subscribe(self, prefix: str) -> None:
        self._socket.subscribe(prefix.encode())

    def unsubscribe(self, prefix: str) -> None:
        self._socket.unsubscribe(prefix.encode())

    def _read(self) -> None:
        frames = self._socket.recv_multipart(zmq.NOBLOCK)
        if len(frames) != 2:
            log.warning("event of the wrong shape dropped", frames=len(frames))
            return
        try:
            topic = frames[0].decode()
        except UnicodeDecodeError:
            log.warning("event with an unreadable topic dropped")
            return
        self._on_event(topic, frames[1])

    def close(self) -> None:
        if not self._socket.closed:
            self._edge.close()
            self._socket.close(linger=0)
            if self._claim is not None:
                self._claim.release()
            self._forget(self)
