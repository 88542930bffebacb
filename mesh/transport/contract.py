"""The contract between a transport and the layers above it.

Owns: the Protocols that `zmq` and `memory` both implement; tests/contract/test_transport.py is their contract suite.
Leaves to others: what the frames mean (protocol), where to connect (discovery), when to give up (calls).

Everything here is synchronous callbacks on one event loop; only `listen` and `close` are coroutines.

A *message* is a list of frames. Frame 0 is bytes: a sequence of MessagePack arrays. Further frames are large
bodies (bytes or memoryview). The transport neither reads nor copies them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

Buffer = bytes | bytearray | memoryview
Message = Sequence[Buffer]


class Refusal(str):
    """The reason passed to `Session.lost` when keys, at this end or at the other, did not allow the link. Dialling
    again cannot succeed until the keys are corrected."""

    __slots__ = ()


class Session(Protocol):
    """The upper half of one connection, called by the transport. Its methods raise nothing but ProtocolViolation.

    On the accepting side, a session may be made only at the peer's first message: a peer that sends nothing has none.
    """

    def opened(self) -> None:
        """The connection is open for sending. On the accepting side: called before the first `receive`."""

    def receive(self, frames: list[Buffer]) -> None:
        """A message arrived. A ProtocolViolation raised here is logged by the transport and closes the connection."""

    def data_to_send(self) -> list[list[Buffer]]:
        """Return and remove the messages to send, in order. Called after `wake`, rarely more than once a loop tick."""

    def lost(self, reason: str) -> None:
        """The connection is lost, with all messages under way. Called exactly once, as the last call, also after
        `close`. The reason is a `Refusal` when keys did not allow the connection."""


class Channel(Protocol):
    """The lower half of one connection: the same on the dialling and the accepting side."""

    #: Where the other end listens (dialling side), or a printable name for it (accepting side).
    peer: str
    #: The name of the key that the other end has proved to hold; "" where links have no keys.
    user: str

    def wake(self) -> None:
        """Fetch the messages of `session.data_to_send()` and send them within this loop tick.

        Many wakes in one tick cause one fetch; after very many, `wake` itself may send a part before the tick ends.
        """

    def close(self, reason: str = "closed") -> None:
        """Close the connection now. Messages not yet flushed after `wake` are flushed first; `session.lost(reason)`
        follows."""


#: Makes the session (the upper half) for a new channel.
MakeSession = Callable[[Channel], Session]


class Listener(Protocol):
    """An endpoint that accepts connections."""

    #: As bound, ports and wildcards filled in: "ipc:///…/w-1.sock", "tcp://127.0.0.1:41873", "mem://w-1".
    endpoint: str

    async def close(self, linger_s: float = 0.0) -> None:
        """Stop listening; wait at most `linger_s` until sent messages have left. Every session gets `lost`."""


class Publisher(Protocol):
    """A PUB socket that connects to the subscribers that discovery lists."""

    def connect(self, endpoint: str) -> None:
        """Begin to deliver to this subscriber. Harmless when already connected."""

    def disconnect(self, endpoint: str) -> None:
        """Stop delivering to this subscriber. Harmless when not connected."""

    def joined(self, endpoint: str) -> bool:
        """Whether the subscriptions of this subscriber have arrived here, so that it misses no event from now on."""

    def send(self, topic: str, frame: Buffer) -> None:
        """Deliver to every subscriber of a prefix of `topic`; dropped for subscribers at their high-water mark."""

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
        """Connect. Returns at once; `opened` or `lost` follows. A channel is one connection and never reconnects.

        Raises:
            BadEndpoint: the endpoint is malformed or too long.
        """

    async def listen(self, endpoint: str, accept: MakeSession) -> Listener:
        """Bind and accept. "tcp://host:*" picks a free port.

        Raises:
            AddressInUse: a live process listens there. A stale socket file is removed and replaced.
            BadEndpoint: the endpoint is malformed, or an ipc path too long.
        """

    def publisher(self) -> Publisher: ...

    def subscriber(self, endpoint: str, on_event: Callable[[str, Buffer], None]) -> Subscriber:
        """Bind a SUB socket; `on_event(topic, frame)` for each delivery. Errors as for `listen`."""

    def endpoint(self, name: str) -> str:
        """A fresh listening endpoint of this transport's default kind for `name`, to pass to `listen`."""

    async def close(self) -> None:
        """Close everything that is still open and release the resources."""
