"""Who came to a bound socket and was not let in: said once, with the address that it came from.

Owns: from a connection's descriptor to its peer's address, and which failed handshake was on which connection.
Leaves to others: what a failure means (curve), counting and saying it (refusals), keys that are not valid (curve_zap).

libzmq tells of a failed handshake without a word about the peer. But the next end of a connection that it tells of is
that one's (4.3.5, stream_engine_base.cpp: error), and it was told of the beginning, both with the descriptor.
"""

from __future__ import annotations

import zmq

from mesh.transport.curve import explain_stranger
from mesh.transport.curve_ring import Keyring
from mesh.transport.monitor import FAILED, Monitor
from mesh.transport.refusals import Refusals
from mesh.transport.sockets import borrowed


class Strangers:
    """Of one bound socket; told of what its monitor sees."""

    def __init__(self, ring: Keyring | None, refusals: Refusals) -> None:
        self._ring = ring
        self._refusals = refusals
        #: Descriptor -> address of the peer, where it is certain.
        self._addresses: dict[int, str] = {}
        #: By word: the last address that it was said of.
        self._last: dict[str, str] = {}
        #: (word, sentence, our endpoint) of a failed handshake, until the end of its connection says whose it was.
        self._failed: tuple[str, str, str] | None = None

    def heard(self, monitor: Monitor, event: int, value: int, at: str) -> None:
        """One event of the monitor; only tcp is of interest."""
        if not at.startswith("tcp://"):
            return
        if event == zmq.EVENT_ACCEPTED:
            address = peer_address(value, at)
            # We may be late: if its end is known already, its number may be another connection's by now.
            if address and not monitor.has(zmq.EVENT_DISCONNECTED, value):
                self._addresses[value] = address
        elif event == zmq.EVENT_DISCONNECTED:
            self._say(self._addresses.pop(value, ""))
        elif event in FAILED:
            self._say("")
            explained = explain_stranger(event, value, self._ring)
            self._failed = (*explained, at) if explained is not None else None

    def _say(self, peer: str) -> None:
        if self._failed is not None:
            (word, sentence, at), self._failed = self._failed, None
            known = {"peer": peer} if peer else {}
            if peer:
                self._last[word] = peer
            # One whose address was missed is likely the one that keeps trying: no news beside what was said of it.
            self._refusals.note(word, f"{at} {peer or self._last.get(word, '')}", sentence, endpoint=at, **known)


def peer_address(fd: int, endpoint: str) -> str:
    """Where a connection of the listener at `endpoint` comes from; "" when it is no such connection any more."""
    try:
        with borrowed(fd) as connection:
            if connection.getsockname()[1] == int(endpoint.rpartition(":")[2]):
                return str(connection.getpeername()[0])
    except (OSError, IndexError, TypeError, ValueError):
        pass  # it has ended by itself, and is something else now
    return ""
