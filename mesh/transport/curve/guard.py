"""Identifies the peers of one bound CURVE socket, and closes their connections when their keys become invalid.

Owns: the name of a message's sender, the descriptors of live connections, closing a connection.
Leaves to others: valid keys (key_ring), admission (zap), ending the sessions (router, pubsub).

libzmq has no call that closes one connection of a bound socket. But each message and each event of the monitor comes
with the descriptor of its connection, which this process can shut down itself: libzmq then handles it as a
disconnection by the peer.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, NamedTuple

import zmq

from mesh.transport.connections import shut
from mesh.transport.curve.key_ring import Keyring
from mesh.transport.endpoints import parse

_USER: Final = "User-Id"  # the name of this metadata in ZAP and libzmq


class Sender(NamedTuple):
    """The sender of a message.

    Attributes:
        name: the name of its key.
        credential: name and key, as the ZAP handler passed them to libzmq.
    """

    name: str
    credential: str


class Guard:
    """The peers of one bound CURVE socket."""

    def __init__(self, ring: Keyring, endpoint: str) -> None:
        """`endpoint`: the endpoint as bound."""
        self._where = parse(endpoint)
        self._ring = ring
        #: Descriptor -> credential of its peer; "" before the first message.
        self._behind: dict[int, str] = {}
        #: Cache: credential -> sender, cleared when the keys change.
        self._senders: dict[str, Sender | None] = {}

    def sender(self, frame: zmq.Frame) -> Sender | None:
        """The sender of a message. None when its key is no longer valid; then its connection is closed."""
        try:
            user = str(frame.get(_USER))
            fd = int(frame.get(zmq.SRCFD))
        except (zmq.ZMQError, TypeError, ValueError):
            return None  # a connection that is older than the keys has no credential
        if self._behind.get(fd) != user:
            self._behind[fd] = user
        try:
            sender = self._senders[user]
        except KeyError:
            sender = self._senders[user] = Sender(user.rpartition(" ")[0], user) if self.valid(user) else None
        if sender is None:
            self._cut(fd)
        return sender

    def heard(self, event: int, value: int) -> None:
        """Handle one event of the monitor: track the open descriptors."""
        if event == zmq.EVENT_ACCEPTED:
            self._behind[value] = ""
        elif event == zmq.EVENT_DISCONNECTED:
            self._behind.pop(value, None)

    def keys_changed(self, spare: Collection[int] = ()) -> None:
        """A key became invalid: close every connection that does not have a valid key, except for the descriptors in
        `spare`. A connection without a first message is closed too, as its key is unknown; a valid peer reconnects."""
        self._senders.clear()
        for fd, user in list(self._behind.items()):
            if fd not in spare and not (user and self.valid(user)):
                self._cut(fd)

    def valid(self, user: str) -> bool:
        """Whether a credential is valid now: the key is valid and still has this name."""
        name, _, digits = user.rpartition(" ")
        try:
            return bool(name) and self._ring.name_of(bytes.fromhex(digits)) == name
        except ValueError:
            return False

    def _cut(self, fd: int) -> None:
        """Shut a connection down; libzmq closes the descriptor when it notices."""
        self._behind.pop(fd, None)
        shut(fd, self._where)
