"""What a killed peer had sent and nobody has read yet."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from mesh.errors import ProtocolViolation
from mesh.transport.contract import Buffer, Channel
from mesh.transport.zmq_transport import ZmqTransport
from tests.patience import until

#: A process of its own, so that in this one the next connection gets the descriptor of the last.
SENDS = """
import pathlib, sys, time, zmq
where, name, count = sys.argv[1], pathlib.Path(sys.argv[2]), int(sys.argv[3])
socket = zmq.Context().socket(zmq.DEALER)
socket.setsockopt(zmq.RECONNECT_IVL, 3_600_000)  # as mesh's own: one connection and no more
socket.connect(where)
socket.send(b"hello")
while not (name / "go").exists():
    time.sleep(0.005)
for number in range(count):
    socket.send(b"%d" % number)
socket.getsockopt(zmq.EVENTS)
time.sleep(0.2)  # the I/O thread has handed all of it to the kernel, and that to the other end
(name / "sent").touch()
time.sleep(60)
"""


class Strict:
    """A session that begins with a hello, as every one does, and answers each message."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.heard: list[bytes] = []
        self.why = ""
        self.waiting: list[list[Buffer]] = []

    def opened(self) -> None:
        """Nothing to say."""

    def receive(self, frames: Sequence[Buffer]) -> None:
        word = bytes(frames[0])
        if (word == b"hello") == bool(self.heard):
            raise ProtocolViolation(f"{word!r}: not legal now")
        self.heard.append(word)
        self.waiting.append([b"answer"])
        self.channel.wake()

    def data_to_send(self) -> list[list[Buffer]]:
        waiting, self.waiting = self.waiting, []
        return waiting

    def lost(self, reason: str) -> None:
        self.why = reason


def stand_still_until(path: Path) -> None:
    """The loop is busy with something else meanwhile."""
    end = time.monotonic() + 10
    while not path.exists():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.parametrize("more", [0, 500])
async def test_the_leftovers_of_the_dead_disturb_nobody(more: int) -> None:
    """Killed with messages unread, its descriptor another's already: it is met once, and the other one stays."""
    sessions: list[Strict] = []

    def accept(channel: Channel) -> Strict:
        sessions.append(Strict(channel))
        return sessions[-1]

    with tempfile.TemporaryDirectory(prefix="mesh-") as directory:
        run = Path(directory)
        transport = ZmqTransport(run / "run")
        endpoint = transport.endpoint("busy")
        await transport.listen(endpoint, accept)
        started: list[subprocess.Popen[bytes]] = []

        def start(name: str, count: int) -> Path:
            (run / name).mkdir()
            words = [sys.executable, "-c", SENDS, endpoint, str(run / name), str(count)]
            started.append(subprocess.Popen(words, stdin=subprocess.DEVNULL))
            return run / name

        try:
            first = start("first", 20 + more)
            await until(lambda: sessions and sessions[0].heard)
            (first / "go").touch()
            stand_still_until(first / "sent")
            started[0].kill()
            started[0].wait()
            second = start("second", 20)
            (second / "go").touch()
            stand_still_until(second / "sent")
            await until(lambda: len(sessions) > 1 and len(sessions[1].heard) == 21)
            await until(lambda: sessions[0].why)
            assert [session.heard[0] for session in sessions] == [b"hello", b"hello"]
            assert len(sessions) == 2
            assert sessions[1].why == ""
        finally:
            for process in started:
                process.kill()
                process.wait()
            await transport.close()
