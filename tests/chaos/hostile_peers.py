"""Peers that break the rules on purpose: raw ZMTP over a unix socket, and libzmq sockets with CURVE keys.

Owns: what such a peer sends, and how it leaves.
Leaves to others: the processes that it attacks and what becomes of them (hostile).
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Protocol

import zmq

from mesh.discovery.admission import encode_records
from mesh.discovery.record import Instance, MethodRecord
from mesh.protocol.codec import one
from mesh.protocol.messages import CALL, HELLO, PING, REGISTER, RENEW, VERSION, WELCOME
from mesh.transport.curve.key_files import read_public, read_secret

#: ZMTP 3.1: signature, version, mechanism NULL, as-server 0.
_GREETING: Final = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)
_MORE, _LONG, _COMMAND = 1, 2, 4
#: One send: more than the socket's buffer, so that the peer is always behind.
_BURST: Final = 64 * 1024
LARGEST: Final = 64 * 2**20


class Peer(Protocol):
    """A connection that sends frames and reads nothing."""

    def end_at(self, instant: float) -> None:
        """A send that is not taken until then (time.monotonic) fails."""

    def send(self, frame: bytes, more: bool = False) -> None:
        """Raises OSError or zmq.ZMQError when the other end has cut the connection, or takes nothing more."""

    def close(self) -> None: ...


class RawPeer:
    """ZMTP with the NULL mechanism, spoken by hand over a unix socket."""

    def __init__(self, path: str, kind: str = "DEALER") -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(5.0)
        self._end = time.monotonic() + 3600.0
        self._socket.connect(path)
        self._socket.sendall(_GREETING)
        self._read(64)
        ready = b"\x05READY" + _property(b"Socket-Type", kind.encode()) + _property(b"Identity", b"")
        self._socket.sendall(bytes([_COMMAND, len(ready)]) + ready)
        self._read(self._read(2)[1])

    def _read(self, size: int) -> bytes:
        got = b""
        while len(got) < size:
            piece = self._socket.recv(size - len(got))
            if not piece:
                raise ConnectionError("closed in the handshake")
            got += piece
        return got

    def send(self, frame: bytes, more: bool = False) -> None:
        self.send_raw(framed(frame, more))

    def send_raw(self, octets: bytes) -> None:
        """Frames that were packed before."""
        self._socket.settimeout(max(0.001, self._end - time.monotonic()))
        self._socket.sendall(octets)

    def end_at(self, instant: float) -> None:
        self._end = instant

    def close(self) -> None:
        self._socket.close()


class KeyedPeer:
    """A DEALER with a key that the other end knows, whose own receive queue is full after one message."""

    def __init__(self, endpoint: str, keys: Path, name: str, server: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.linger = 0
        self._socket.rcvhwm = 1
        self._socket.setsockopt(zmq.RCVBUF, 4096)
        self._socket.setsockopt(zmq.RECONNECT_IVL, -1)
        self._end = time.monotonic() + 3600.0
        secret = read_secret(keys, name)
        self._socket.curve_publickey = secret.public
        self._socket.curve_secretkey = secret.secret
        self._socket.curve_serverkey = read_public(keys, server)[0].public
        self._socket.connect(endpoint)

    def end_at(self, instant: float) -> None:
        self._end = instant

    def send(self, frame: bytes, more: bool = False) -> None:
        self._socket.sndtimeo = max(1, int((self._end - time.monotonic()) * 1000))
        self._socket.send(frame, zmq.SNDMORE if more else 0)

    def close(self) -> None:
        self._context.destroy(linger=0)


def framed(frame: bytes, more: bool = False) -> bytes:
    """A ZMTP frame."""
    flags = _MORE if more else 0
    if len(frame) < 256:
        return bytes([flags, len(frame)]) + frame
    return bytes([flags | _LONG]) + len(frame).to_bytes(8, "big") + frame


def _property(name: bytes, value: bytes) -> bytes:
    return bytes([len(name)]) + name + len(value).to_bytes(4, "big") + value


def hello(name: str) -> bytes:
    return one(HELLO, VERSION, name, 1, LARGEST)


# --- attacks: each sends until `seconds` are over or it was cut, and closes without having read ---------------------

Attack = Callable[[Peer, float], None]


def _until(seconds: float) -> Iterator[int]:
    end = time.monotonic() + seconds
    count = 0
    while time.monotonic() < end:
        count += 1
        yield count


def pings_in_bundles(peer: Peer, seconds: float) -> None:
    """Valid pings, thousands to a frame: much work for few bytes."""
    bundle = one(PING, 1) * 40_000
    peer.send(hello("hostile-bundles"))
    for _ in _until(seconds):
        peer.send(bundle)


def pings_one_by_one(peer: Peer, seconds: float) -> None:
    """Valid pings, a ZeroMQ message each."""
    peer.send(hello("hostile-pings"))
    ping = framed(one(PING, 1))
    burst = ping * (_BURST // len(ping))
    for _ in _until(seconds):
        if isinstance(peer, RawPeer):
            peer.send_raw(burst)
        else:
            peer.send(one(PING, 1))


def calls_without_credit(peer: Peer, seconds: float) -> None:
    """Calls, far more than the link has credit for."""
    peer.send(hello("hostile-calls"))
    for number in _until(seconds):
        peer.send(one(CALL, number, "victim.echo", 60_000, b"\x81\xa4text\xa1x"))


def empty_messages(peer: Peer, seconds: float) -> None:
    """Messages with nothing in them."""
    peer.send(hello("hostile-empty"))
    burst = framed(b"") * (_BURST // 2)
    for _ in _until(seconds):
        if isinstance(peer, RawPeer):
            peer.send_raw(burst)
        else:
            peer.send(b"")


def unended_message(peer: Peer, seconds: float, size: int = 300 * 2**20) -> None:
    """One ZeroMQ message whose frames never end."""
    peer.send(hello("hostile-unended"))
    frame = bytes(2**20)
    sent = 0
    for _ in _until(seconds):
        if sent < size:
            peer.send(frame, more=True)
            sent += len(frame)
        else:
            time.sleep(0.05)


ATTACKS: Final[dict[str, Attack]] = {
    "bundles": pings_in_bundles,
    "pings": pings_one_by_one,
    "calls": calls_without_credit,
    "empty": empty_messages,
    "unended": unended_message,
}


def attack(connect: Callable[[], Peer], how: Attack, seconds: float) -> float:
    """One try: connect, send, close; how many seconds passed until the other end had cut it, or it ended by itself."""
    began = time.monotonic()
    with contextlib.suppress(OSError, zmq.ZMQError):
        peer = connect()
        peer.end_at(began + seconds)
        try:
            how(peer, seconds)
        finally:
            peer.close()
    return time.monotonic() - began


# --- a worker that callers dial ---------------------------------------------------------------------------------------


class HostileWorker:
    """Registers as an instance of `ghost`; welcomes each caller, then sends pings and never reads again.

    A raw listening socket: so that nothing but the kernel takes what the caller sends.
    """

    def __init__(self, run_dir: Path, hub: str, seconds: float) -> None:
        self._path = f"{run_dir}/ghost-{time.monotonic_ns()}.sock"
        self._seconds = seconds
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(self._path)
        self._listening.listen(16)
        self._stopping = threading.Event()
        self.served = 0
        self._hub = RawPeer(hub)
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._serve, self._renew)]
        for thread in self._threads:
            thread.start()

    def _renew(self) -> None:
        record = Instance(
            service="ghost",
            id="ghost-1",
            epoch=time.time_ns() // 1_000_000,
            endpoint=f"ipc://{self._path}",
            methods={"boo": MethodRecord("boo")},
        )
        with contextlib.suppress(OSError):
            self._hub.send(hello("ghost-1"))
            self._hub.send(one(REGISTER, 1, encode_records([record])))
            while not self._stopping.wait(0.5):
                self._hub.send(one(RENEW, [[record.id, record.epoch, 0.0]]))

    def _serve(self) -> None:
        welcome = framed(one(WELCOME, VERSION, "ghost", 1, 2**31, LARGEST))
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._torment, args=(connection, welcome), daemon=True).start()

    def _torment(self, connection: socket.socket, welcome: bytes) -> None:
        connection.settimeout(3.0)
        burst = framed(one(PING, 1)) * 10_000
        ready = b"\x05READY" + _property(b"Socket-Type", b"ROUTER") + _property(b"Identity", b"")
        with contextlib.suppress(OSError), connection:
            connection.sendall(_GREETING + bytes([_COMMAND, len(ready)]) + ready)
            connection.recv(4096)
            time.sleep(0.05)
            connection.sendall(welcome)
            self.served += 1
            for _ in _until(self._seconds):
                connection.sendall(burst)

    def close(self) -> None:
        self._stopping.set()
        self._listening.close()
        self._hub.close()
        Path(self._path).unlink(missing_ok=True)
