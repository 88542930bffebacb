"""CURVE on every tcp link: both ends prove that they hold the key that the other expects, and the link is encrypted.

Owns: socket options, which endpoints need keys, the key that a dialler expects, and the meaning of failed handshakes.
Leaves to others: keys (key_ring), admitting diallers (zap), closing connections (guard).

ipc links use no keys: their sockets are in a directory that only their user may enter.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

import zmq

from mesh.errors import SetupError
from mesh.transport.curve.key_files import ADVICE, KEY_BYTES, PUBLIC, PublicKey, shown
from mesh.transport.curve.key_ring import Keyring
from mesh.transport.curve.zap import DOMAIN
from mesh.transport.endpoints import Endpoint
from mesh.transport.sockets import Socket


class Unprotected(SetupError):
    """A socket without keys would be reachable from other hosts."""

    code = "unprotected"
    advice = ADVICE


def check_exposed(where: Endpoint, ring: Keyring | None) -> None:
    """Raise Unprotected for a bind without keys that other hosts could reach."""
    if where.exposed and ring is None:
        raise Unprotected(
            f"{where.where}: without keys this is refused: any process on another host could call every method. "
            f'Make keys with `mesh keys make NAME` and set keys.dir in mesh.toml; or listen on "ipc" or 127.0.0.1'
        )


def dress_listener(socket: Socket, ring: Keyring) -> None:
    """Before bind: admit only peers that prove to hold a key of the ring."""
    socket.setsockopt(zmq.CURVE_SERVER, 1)
    socket.setsockopt(zmq.CURVE_PUBLICKEY, ring.own.public)
    socket.setsockopt(zmq.CURVE_SECRETKEY, ring.own.secret)
    socket.setsockopt(zmq.ZAP_DOMAIN, DOMAIN)
    # Without a ZAP handler, libzmq then refuses all peers instead of admitting all.
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)


def dress_dialler(socket: Socket, ring: Keyring, expected: bytes) -> None:
    """Before connect: connect only to a listener that proves to hold the key `expected`."""
    socket.setsockopt(zmq.CURVE_PUBLICKEY, ring.own.public)
    socket.setsockopt(zmq.CURVE_SECRETKEY, ring.own.secret)
    socket.setsockopt(zmq.CURVE_SERVERKEY, expected)


def dress_knock(socket: Socket, ring: Keyring | None) -> None:
    """Before connecting to a listener that this process does not trust: make the listener log this, and reveal nothing.

    A random key is expected, which no process holds. So the listener ends the handshake at the first message, which
    does not contain this process's identity yet, and logs that a peer expects another key. When this process has no
    keys, the listener logs that a peer came without a key."""
    if ring is not None:
        dress_dialler(socket, ring, os.urandom(KEY_BYTES))


def with_key(endpoint: str, ring: Keyring | None) -> str:
    """The endpoint to advertise: to a tcp endpoint, the public key of its listener is appended."""
    if ring is None or not endpoint.startswith("tcp://"):
        return endpoint
    return f"{endpoint}?key={ring.own.public.hex()}"


def explain_stranger(event: int, error: int, ring: Keyring | None) -> tuple[str, str] | None:
    """Why a handshake failed at the accepting end: a word for the metric and a sentence. None when keys are not the
    cause (garbage, a port scanner), or when the key is invalid, which the ZAP handler reports."""
    if event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
        if ring is None:
            return None
        return (
            "hung_up",
            "a peer ended the handshake: it has no key (set keys.dir in its mesh.toml), or is not a mesh process",
        )
    if event != zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
        return None
    if error == _MISMATCH:
        if ring is None:
            return "unexpected_key", "a peer uses a key, but this process has none: set keys.dir in mesh.toml"
        return "no_key", "a peer has no key: set keys.dir in its mesh.toml"
    if error == zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC and ring is not None:
        own = f"{ring.own.name!r} ({shown(ring.own.public)})"
        return (
            "other_key_expected",
            f"a peer expects another key than {own} here, or does not know this one: "
            f"copy {ring.own.name}{PUBLIC} to its directory of keys",
        )
    return None


class Expectation:
    """The key that a dialler expects at one endpoint: the one in the endpoint, or else one of the hubs' keys.

    Attributes:
        trouble: why no link is possible, and what to do; "" when it is. The peer learns of it by `dress_knock`.
        keys: the keys to try, in order.
    """

    def __init__(self, where: Endpoint, ring: Keyring | None) -> None:
        self.where = where
        self.ring = ring
        self.trouble = ""
        self.keys: Sequence[PublicKey] = ()
        if where.kind != "tcp":
            return
        if ring is None:
            if where.key:
                self.trouble = "it requires a key, but this process has none: set keys.dir in mesh.toml"
        elif where.key:
            self._named(ring, bytes.fromhex(where.key))
        else:
            self.keys = ring.hubs(where.where, where.address)
            if not self.keys:
                self.trouble = (
                    f"no valid key of {ring.hub!r} is in {ring.directory}: copy it there, or correct keys.hub"
                )

    def _named(self, ring: Keyring, public: bytes) -> None:
        name = ring.name_of(public)
        if name is None:
            ring.look_soon()  # for the next attempt
            self.trouble = f"its key {shown(public)} {ring.why_not(public)}"
        else:
            self.keys = (PublicKey(name, public),)

    def valid(self, key: PublicKey | None) -> bool:
        """Whether the key of the link is still valid and has the same name."""
        return key is None or (self.ring is not None and self.ring.name_of(key.public) == key.name)

    def stands(self, key: PublicKey) -> None:
        """The peer has proved that it holds this key."""
        if self.ring is not None and not self.where.key:
            self.ring.answered(self.where.where, key.public)

    def explain(self, event: int, value: int, key: PublicKey | None) -> tuple[str, str] | None:
        """Why a handshake failed: a word for the metric and a sentence; the word is "" when another cause is possible.
        None when keys are not the cause.

        An end that gets the wrong mechanism closes the connection, sometimes before its peer has read enough to know
        why: then the peer's event has no detail.
        """
        if self.where.kind != "tcp":
            return None
        mismatch = event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL and value == _MISMATCH
        if key is None or self.ring is None:
            if mismatch:
                return "no_key_here", "it requires a key, but this process has none: set keys.dir in mesh.toml"
            if event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
                return (
                    "",
                    "it ended the handshake: it may require a key; this process has none: set keys.dir in mesh.toml",
                )
            return None
        own = self.ring.own
        if mismatch:
            return (
                "no_key_there",
                f"it has no key, but this process expects the key of {key.name!r}: set keys.dir in its mesh.toml",
            )
        if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            return "key_refused", (
                f"it refuses this process's key {own.name!r} ({shown(own.public)}): "
                f"its directory of keys does not contain this key, or it was revoked there"
            )
        if event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
            return "wrong_key_there", (
                f"it ended the handshake: it has no key, or not the expected key of {key.name!r} "
                f"({shown(key.public)}); its key may be newer than those in {self.ring.directory}"
            )
        return None


_MISMATCH: Final = int(zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH)
