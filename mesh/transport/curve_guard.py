"""Who is behind the connections of one bound socket, and ending those whose key is not valid any more.

Owns: from a message to its sender's name, the descriptors of live connections, cutting one.
Leaves to others: who is known (curve_ring), who may connect (curve_zap), what a cut does to sessions (router, pubsub).

libzmq has no call that ends one connection of a bound socket. But the descriptor of a connection comes with each of
its messages and with the monitor's events, and a descriptor is this process's own to shut down: libzmq then finds the
connection ended by the other side, and cleans up as it always does.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, NamedTuple

import zmq

from mesh.transport.connections import shut
from mesh.transport.curve_ring import Keyring
from mesh.transport.endpoints import parse

_USER: Final = "User-Id"  # ZAP's name for it, and libzmq's


class Sender(NamedTuple):
    """Who a message is from.

    Attributes:
        name: of the key.
        credential: name and key, as ZAP told libzmq.
    """

    name: str
    credential: str


class Guard:
    """Of one bound CURVE socket."""

    def __init__(self, ring: Keyring, endpoint: str) -> None:
        """`endpoint`: as the socket was bound."""
        self._where = parse(endpoint)
        self._ring = ring
        #: Descriptor -> credential of whoever is behind it; "" before its first message.
        self._behind: dict[int, str] = {}
        #: Credentials that were looked at since the keys changed.
        self._senders: dict[str, Sender | None] = {}

    def sender(self, frame: zmq.Frame) -> Sender | None:
        """Who sent this; None when its key is not valid any more, and then its connection is cut."""
        try:
            user = str(frame.get(_USER))
            fd = int(frame.get(zmq.SRCFD))
        except (zmq.ZMQError, TypeError, ValueError):
            return None  # of a connection that came before the keys: there is none
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
        """The monitor's events: which descriptors there are."""
        if event == zmq.EVENT_ACCEPTED:
            self._behind[value] = ""
        elif event == zmq.EVENT_DISCONNECTED:
            self._behind.pop(value, None)

    def keys_changed(self, spare: Collection[int] = ()) -> None:
        """Somebody is not valid any more: end every connection that is not known to be that of a valid key, but for the
        descriptors in `spare`. One that has said nothing may well be, and connects again; mesh's own speak at once."""
        self._senders.clear()
        for fd, user in list(self._behind.items()):
            if fd not in spare and not (user and self.valid(user)):
                self._cut(fd)

    def valid(self, user: str) -> bool:
        """Whether a credential holds now: a key that has another name is another's."""
        name, _, digits = user.rpartition(" ")
        try:
            return bool(name) and self._ring.name_of(bytes.fromhex(digits)) == name
        except ValueError:
            return False

    def _cut(self, fd: int) -> None:
        """Shut a connection down; libzmq closes the descriptor when it notices."""
        self._behind.pop(fd, None)
        shut(fd, self._where)
