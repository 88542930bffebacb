"""What a transport offers and what it asks of those above: the one seam between bytes and meaning.

Owns: the Protocols that `zmq` and `memory` both fulfil; tests/contract/test_transport.py holds them to it.
Leaves to others: what the frames mean (protocol), whom to connect to (discovery), when to give up (calls).

Everything here is synchronous callbacks on one event loop; only `listen` and `close` wait.

A *message* is a list of frames. Frame 0 is bytes: a sequence of MessagePack arrays. Further frames are large
bodies (bytes or memoryview). The transport neither reads nor copies them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

Buffer = bytes | bytearray | memoryview
Message = Sequence[Buffer]


class Refusal(str):
    """Why a link could not stand when keys, at this end or at the other, did not allow it: the reason that
    `Session.lost` is given. Somebody has to mend them; until then, to dial again is in vain."""

    __slots__ = ()


class Session(Protocol):
    """The upper half of one connection. The transport calls it; it never raises but ProtocolViolation.

    On the accepting side it may begin only with the peer's first message: a peer that says nothing is not seen.
    """

    def opened(self) -> None:
        """The connection stands; what is sent now leaves. On the accepting side: called before the first receive."""

    def receive(self, frames: list[Buffer]) -> None:
        """One message came. A ProtocolViolation raised here is logged by the transport and cuts the connection."""

    def data_to_send(self) -> list[list[Buffer]]:
        """Every message that waits to leave, in order; asked after `wake`, seldom more than once a tick. Empties it."""

    def lost(self, reason: str) -> None:
        """The connection is gone, with whatever was under way. Called exactly once, last, also after `close`. The
        reason is a `Refusal` when keys kept it from standing."""


class Channel(Protocol):
    """The lower half of one connection: the same on the dialling and the accepting side."""

    #: Where the other end listens (dialling side), or a printable name for it (accepting side).
    peer: str
    #: The name of the key that the other end has proved to hold; "" where links have no keys.
    user: str

    def wake(self) -> None:
        """There is something in `session.data_to_send()`: fetch and send it within this loop tick.

        Once for many wakes; when very many come in one tick, part of it may leave before the tick ends, from inside
        `wake`.
        """

    def close(self, reason: str = "closed") -> None:
        """Cut it now. What was woken for but not flushed is flushed first; `session.lost(reason)` follows."""


#: Given the new channel, make the session that will own its upper half.
MakeSession = Callable[[Channel], Session]


class Listener(Protocol):
    """An endpoint that accepts connections."""

    #: As bound, ports and wildcards filled in: "ipc:///…/w-1.sock", "tcp://127.0.0.1:41873", "mem://w-1".
    endpoint: str

    async def close(self, linger_s: float = 0.0) -> None:
        """Stop; wait at most `linger_s` for what has been sent to leave. Every session is told `lost`."""


class Publisher(Protocol):
    """A PUB socket that connects to the subscribers that discovery tells of."""

    def connect(self, endpoint: str) -> None:
        """Begin to deliver to that subscriber; harmless when already connected."""

    def disconnect(self, endpoint: str) -> None:
        """Stop; harmless when not connected."""

    def joined(self, endpoint: str) -> bool:
        """Whether that subscriber's subscriptions have arrived here, so that nothing sent now misses it."""

    def send(self, topic: str, frame: Buffer) -> None:
        """Deliver to every subscriber of a prefix of `topic`; drops for those past their high-water mark."""

    def close(self) -> None: ...


class Subscriber(Protocol):
    """A SUB socket, bound, to which publishers connect."""

    endpoint: str

    def subscribe(self, prefix: str) -> None: ...

    def unsubscribe(self, prefix: str) -> None: ...

    def close(self) -> None: ...


class Transport(Protocol):
    """A way to carry messages between processes."""

    def dial(self, endpoint: str, make: MakeSession) -> Channel:
        """Connect. Returns at once; `opened` or `lost` follows. One connection: it never reconnects by itself.

        Raises:
            BadEndpoint: the endpoint is malformed or too long.
        """

    async def listen(self, endpoint: str, accept: MakeSession) -> Listener:
        """Bind and accept. "tcp://host:*" picks a free port.

        Raises:
            AddressInUse: a live process listens there. A stale socket file is cleaned and taken.
            BadEndpoint: the endpoint is malformed, or an ipc path too long.
        """

    def publisher(self) -> Publisher: ...

    def subscriber(self, endpoint: str, on_event: Callable[[str, Buffer], None]) -> Subscriber:
        """Bind a SUB socket; `on_event(topic, frame)` for each delivery. Errors as for `listen`."""

    def endpoint(self, name: str) -> str:
        """A fresh listening endpoint of this transport's default kind for `name`, to pass to `listen`."""

    async def close(self) -> None:
        """Close everything that is still open and release the resources."""
