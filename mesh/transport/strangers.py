"""Reports peers that failed the handshake with a bound socket, with their addresses.

Owns: the peer's address for a connection's descriptor, and matching failed handshakes with connections.
Leaves to others: the cause of a failure (curve), counting and logging (refusals), invalid keys (zap).

libzmq reports a failed handshake without any information about the peer. But the next disconnection that it reports
belongs to the same connection (4.3.5, stream_engine_base.cpp: error), and it reports both the accept and the
disconnection with the descriptor.
"""

from __future__ import annotations

import zmq

from mesh.transport.curve.key_ring import Keyring
from mesh.transport.curve.links import explain_stranger
from mesh.transport.monitor import FAILED, Monitor
from mesh.transport.refusals import Refusals
from mesh.transport.sockets import borrowed


class Strangers:
    """The failed handshakes of one bound socket, from the events of its monitor."""

    def __init__(self, ring: Keyring | None, refusals: Refusals) -> None:
        self._ring = ring
        self._refusals = refusals
        #: Descriptor -> address of the peer, if it is certain.
        self._addresses: dict[int, str] = {}
        #: Word for the metric -> the last address reported with it.
        self._last: dict[str, str] = {}
        #: (word, sentence, endpoint of the listener) of a failed handshake, until the disconnection shows its peer.
        self._failed: tuple[str, str, str] | None = None

    def heard(self, monitor: Monitor, event: int, value: int, at: str) -> None:
        """Handle one event of the monitor; only those of tcp are used."""
        if not at.startswith("tcp://"):
            return
        if event == zmq.EVENT_ACCEPTED:
            address = peer_address(value, at)
            # If the connection has ended already, its descriptor may belong to another connection by now.
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
            # A peer without a known address is probably the last one trying again: treat it as a repetition.
            self._refusals.note(word, f"{at} {peer or self._last.get(word, '')}", sentence, endpoint=at, **known)


def peer_address(fd: int, endpoint: str) -> str:
    """The peer's address of a connection of the listener at `endpoint`; "" when it has ended."""
    try:
        with borrowed(fd) as connection:
            if connection.getsockname()[1] == int(endpoint.rpartition(":")[2]):
                return str(connection.getpeername()[0])
    except (OSError, IndexError, TypeError, ValueError):
        pass  # the connection has ended, and the descriptor may be another file by now
    return ""
