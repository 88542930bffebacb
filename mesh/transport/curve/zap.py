"""Authenticates peers for libzmq: a ZAP handler (https://rfc.zeromq.org/spec/27/), one in each context.

Owns: the socket of the handler, and the decision.
Leaves to others: valid keys (key_ring), open connections (guard).

It runs on the event loop: a blocked process admits no peers, as it does without keys. It must exist before the first
bind, because libzmq refuses all peers without it (ZMQ_ZAP_ENFORCE_DOMAIN).
"""

from __future__ import annotations

from typing import Final

import zmq

from mesh.transport.curve.key_files import KEY_BYTES, shown
from mesh.transport.curve.key_ring import Keyring
from mesh.transport.refusals import Refusals
from mesh.transport.sockets import Context, Edge

ENDPOINT: Final = "inproc://zeromq.zap.01"
#: The ZAP domain of mesh sockets.
DOMAIN: Final = b"mesh"
VERSION: Final = b"1.0"
_WELCOME: Final = b"200"
_NOT_YOU: Final = b"400"  # libzmq reports this to the client; with 300, the client would wait until its timeout
_BROKEN: Final = b"500"


def credential(name: str, public: bytes) -> str:
    """The User-Id that libzmq stores for a peer and attaches to each of its messages."""
    return f"{name} {public.hex()}"


class Zap:
    """The ZAP handler of one context."""

    def __init__(self, context: Context, ring: Keyring, refusals: Refusals) -> None:
        self._ring = ring
        self._refusals = refusals
        self._socket = context.socket(zmq.REP)
        self._socket.linger = 0
        self._socket.bind(ENDPOINT)
        self._edge = Edge(self._socket, self._read)

    def _read(self) -> None:
        request = self._socket.recv_multipart(zmq.NOBLOCK)
        self._socket.send_multipart(self._answer(request), zmq.NOBLOCK)

    def _answer(self, request: list[bytes]) -> list[bytes]:
        number = request[1] if len(request) > 1 else b""
        if len(request) != 7 or request[0] != VERSION or request[5] != b"CURVE" or len(request[6]) != KEY_BYTES:
            return [VERSION, number, _BROKEN, b"this handler supports ZAP 1.0 with CURVE only", b"", b""]
        public, address = request[6], request[3].decode("utf-8", "replace")
        name = self._ring.name_now(public)
        if name is None:
            why = self._ring.why_not(public)
            reason = "revoked_key" if why.startswith("was revoked") else "unknown_key"
            self._refusals.note(
                reason, f"{address} {shown(public)}", f"a peer's key {why}", peer=address, key=shown(public)
            )
            return [VERSION, number, _NOT_YOU, b"unknown key", b"", b""]
        return [VERSION, number, _WELCOME, b"", credential(name, public).encode(), b""]

    def close(self) -> None:
        """Close the handler; call it after all sockets that use it are closed."""
        self._edge.close()
        self._socket.close()
