"""What a peer may do to the memory of a process: raw ZMTP by hand against listeners in this one."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import zmq
from curve_keys import Note

from mesh.transport import connections, dealer, sockets
from mesh.transport.sockets import LinkOptions
from mesh.transport.zmq_transport import ZmqTransport
from tests.patience import until

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)
MIB = 2**20


def ready(kind: bytes) -> bytes:
    body = b"\x05READY" + bytes([11]) + b"Socket-Type" + len(kind).to_bytes(4, "big") + kind
    return bytes([4, len(body)]) + body


def frame(octets: bytes, more: bool = False) -> bytes:
    return bytes([2 | more]) + len(octets).to_bytes(8, "big") + octets


def greeted(endpoint: str, kind: bytes = b"DEALER") -> socket.socket:
    """A connection behind its handshake."""
    if endpoint.startswith("ipc"):
        made = socket.socket(socket.AF_UNIX)
        made.connect(endpoint.removeprefix("ipc://"))
    else:
        host, _, port = endpoint.removeprefix("tcp://").partition(":")
        made = socket.create_connection((host, int(port)))
    made.settimeout(10.0)
    made.sendall(GREETING + ready(kind))
    time.sleep(0.05)
    return made


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.fixture(params=["ipc", "tcp"])
async def transport(request: pytest.FixtureRequest) -> AsyncIterator[ZmqTransport]:
    with tempfile.TemporaryDirectory(prefix="mesh-") as directory:
        bind = "ipc" if request.param == "ipc" else "tcp://127.0.0.1:*"
        # So that a frame of 1 MiB is legal, and a message of ten is not.
        made = ZmqTransport(Path(directory) / "run", bind=bind, options=LinkOptions(max_message_bytes=4 * MIB))
        try:
            yield made
        finally:
            await made.close()


async def listening(transport: ZmqTransport) -> tuple[Any, list[Note]]:
    sessions: list[Note] = []

    def accept(channel: Any) -> Note:
        sessions.append(Note(channel))
        return sessions[-1]

    return await transport.listen(transport.endpoint("victim"), accept), sessions


def in_thread(work: Callable[[], None]) -> threading.Thread:
    def run() -> None:
        with contextlib.suppress(OSError):
            work()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def pour(endpoint: str, kind: bytes, first: bytes, most: int = 1024 * MIB) -> tuple[threading.Thread, list[int]]:
    """Send frames of one message that does not end, until the connection is cut."""
    sent = [0]

    def work() -> None:
        with greeted(endpoint, kind) as made:
            if first:
                made.sendall(frame(first))
            piece = frame(bytes(MIB), more=True)
            while sent[0] < most:
                made.sendall(piece)
                sent[0] += MIB
            sent[0] = most

    return in_thread(work), sent


async def test_a_message_that_does_not_end_is_cut(transport: ZmqTransport) -> None:
    """Frames with MORE for ever: the connection ends, the memory comes back, another peer notices nothing."""
    listener, sessions = await listening(transport)
    other = transport.dial(listener.endpoint, lambda channel: Note(channel, b"other"))
    other.wake()
    await until(lambda: sessions, "the other is heard")
    before = resident()
    thread, sent = pour(listener.endpoint, b"DEALER", b"hello")
    await until(lambda: not thread.is_alive(), "it was cut")
    assert sent[0] < 1024 * MIB
    await until(lambda: resident() - before < 256 * MIB, "the memory came back")
    assert [session.reasons for session in sessions if session.received == [b"other"]] == [[]]


async def test_a_subscriber_is_not_filled_either(transport: ZmqTransport) -> None:
    """The same for the SUB that publishers connect to."""
    heard: list[str] = []
    subscriber = transport.subscriber(transport.endpoint("events"), lambda topic, _: heard.append(topic))
    subscriber.subscribe("news")
    thread, sent = pour(subscriber.endpoint, b"PUB", b"")
    await until(lambda: not thread.is_alive(), "it was cut")
    assert sent[0] < 1024 * MIB


async def test_a_frame_beyond_the_limit_ends_the_connection(transport: ZmqTransport) -> None:
    """Already at its header: nothing of it is read."""
    listener, _ = await listening(transport)
    made = greeted(listener.endpoint)
    made.sendall(bytes([2]) + (1 << 40).to_bytes(8, "big") + bytes(100))
    await until_closed(made)


async def until_closed(made: socket.socket, within_s: float = 10.0) -> None:
    """The other end has closed it."""
    made.settimeout(within_s)

    def read() -> None:
        with made, contextlib.suppress(ConnectionError):
            while made.recv(65536):
                pass

    await asyncio.to_thread(read)


@pytest.mark.parametrize("spoken", [b"", GREETING[:11], GREETING, GREETING + b"\x04\x20"])
async def test_a_handshake_that_is_not_finished_ends(transport: ZmqTransport, spoken: bytes) -> None:
    """After connect_timeout, however far it came."""
    transport._options = LinkOptions(connect_timeout_s=0.3)
    listener, _ = await listening(transport)
    made = greeted_with(listener.endpoint, spoken)
    await until_closed(made)


def greeted_with(endpoint: str, spoken: bytes) -> socket.socket:
    if endpoint.startswith("ipc"):
        made = socket.socket(socket.AF_UNIX)
        made.connect(endpoint.removeprefix("ipc://"))
    else:
        host, _, port = endpoint.removeprefix("tcp://").partition(":")
        made = socket.create_connection((host, int(port)))
    made.sendall(spoken)
    return made


async def test_a_peer_that_never_speaks_is_cut(transport: ZmqTransport, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection without a first message ends after a while; one that has spoken stays."""
    monkeypatch.setattr(connections, "SILENT_S", 0.2)
    listener, sessions = await listening(transport)
    transport.dial(listener.endpoint, lambda channel: Note(channel, b"hello")).wake()
    await until(lambda: sessions, "the other is heard")
    made = await asyncio.to_thread(greeted, listener.endpoint)
    await until_closed(made)
    assert sessions[0].reasons == []


async def test_a_first_message_may_be_read_before_its_connection_is_reported(
    transport: ZmqTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loop that was blocked reads the two sockets of libzmq in any order: the peer has spoken all the same."""
    monkeypatch.setattr(connections, "SILENT_S", 0.1)
    cut: list[int] = []
    shut = connections.shut

    def recorded(fd: int, where: Any) -> bool:
        cut.append(fd)
        return shut(fd, where)

    monkeypatch.setattr(connections, "shut", recorded)
    listener, sessions = await listening(transport)
    own, late = listener._connections, []
    with monkeypatch.context() as held:
        held.setattr(own, "heard", lambda event, value: late.append((event, value)))
        transport.dial(listener.endpoint, lambda channel: Note(channel, b"hello")).wake()
        await until(lambda: sessions and late, "the other is heard")
    spoken = next(iter(listener._by_fd))
    for event, value in late:
        own.heard(event, value)
    silent = await asyncio.to_thread(greeted, listener.endpoint)
    await until_closed(silent)
    assert cut
    assert spoken not in cut
    assert sessions[0].reasons == []


async def test_silent_connections_are_bounded(transport: ZmqTransport, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest of them makes room."""
    listener, _ = await listening(transport)
    listener._connections._most_silent = 3
    made = [await asyncio.to_thread(greeted, listener.endpoint) for _ in range(4)]
    await until_closed(made[0])
    await until(lambda: len(listener._connections.descriptors) == 3, "three are left")
    for each in made[1:]:
        each.close()


async def test_a_peer_that_breaks_the_protocol_loses_its_connection(transport: ZmqTransport) -> None:
    """It is told why, and then cut, whether it listens or not."""
    from mesh.errors import ProtocolViolation

    class Strict(Note):
        def receive(self, frames: list[Any]) -> None:
            raise ProtocolViolation("no")

    listener = await transport.listen(transport.endpoint("strict"), Strict)
    made = await asyncio.to_thread(greeted, listener.endpoint)
    made.sendall(frame(b"anything"))
    await until_closed(made)


async def test_what_waits_for_a_dialled_peer_that_does_not_read_is_bounded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A worker that takes nothing: the caller's link ends when its backlog is full, for many small messages, too."""
    monkeypatch.setattr(dealer, "MAX_BACKLOG_BYTES", MIB)
    with tempfile.TemporaryDirectory(prefix="mesh-") as directory:
        path = f"{directory}/deaf.sock"
        deaf = socket.socket(socket.AF_UNIX)
        deaf.bind(path)
        deaf.listen()
        transport = ZmqTransport(Path(directory) / "run")
        try:
            notes: list[Note] = []

            def make(channel: Any) -> Note:
                notes.append(Note(channel, b"hello"))
                return notes[-1]

            transport.dial(f"ipc://{path}", make).wake()
            connection, _ = await asyncio.to_thread(deaf.accept)
            connection.sendall(GREETING + ready(b"ROUTER"))
            await until(lambda: notes[0].is_open, "it stands")
            end = time.monotonic() + 10.0
            while not notes[0].reasons and time.monotonic() < end:
                for _ in range(200):
                    notes[0].send(b"x" * 100)
                await asyncio.sleep(0)
            assert "bytes" in notes[0].reasons[0]
            connection.close()
        finally:
            await transport.close()
            deaf.close()


async def test_large_bodies_in_libzmqs_hands_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that asks for much and reads nothing: past the window bodies wait in the backlog, and that is bounded."""
    from mesh.transport import router

    monkeypatch.setattr(router, "WINDOW_BYTES", 4 * MIB)
    monkeypatch.setattr(router, "MAX_BACKLOG_BYTES", 8 * MIB)
    with tempfile.TemporaryDirectory(prefix="mesh-") as directory:
        transport = ZmqTransport(Path(directory) / "run")
        try:
            listener, sessions = await listening(transport)
            made = await asyncio.to_thread(greeted, listener.endpoint)
            made.sendall(frame(b"hello"))
            await until(lambda: sessions, "it is heard")
            body = bytes(MIB)
            sent = 0
            while not sessions[0].reasons:
                sessions[0].send(body)
                sent += 1
                assert sent < 30
                await asyncio.sleep(0.01)
            assert "bytes" in sessions[0].reasons[0]
            await until_closed(made)
        finally:
            await transport.close()


async def test_no_socket_has_a_receive_limit(transport: ZmqTransport) -> None:
    """At one, libzmq would stop reading, and a peer that then closes aborts the process."""
    made = [
        sockets.make(transport._context, kind, LinkOptions()) for kind in (zmq.ROUTER, zmq.DEALER, zmq.SUB, zmq.XPUB)
    ]
    assert [one.getsockopt(zmq.RCVHWM) for one in made] == [0, 0, 0, 0]
    for one in made:
        one.close()
    listener, _ = await listening(transport)
    subscriber = transport.subscriber(transport.endpoint("events"), lambda topic, frame: None)
    assert listener._socket.getsockopt(zmq.RCVHWM) == subscriber._socket.getsockopt(zmq.RCVHWM) == 0
