"""What the tests of secure links share: a directory of keys, transports that hold them, and sessions that record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mesh.telemetry.metrics import Recorder
from mesh.transport.curve import key_store
from mesh.transport.curve.key_files import read_secret
from mesh.transport.curve.key_ring import Keyring
from mesh.transport.zmq_transport import ZmqTransport


class Note:
    """A session that writes down what it hears, and sends what it is told to."""

    def __init__(self, channel: Any, greeting: bytes = b"") -> None:
        self.channel = channel
        self.received: list[bytes] = []
        self.reasons: list[str] = []
        self.is_open = False
        self._out: list[list[bytes]] = [[greeting]] if greeting else []

    def opened(self) -> None:
        self.is_open = True

    def receive(self, frames: list[Any]) -> None:
        self.received.append(b"".join(bytes(frame) for frame in frames))

    def data_to_send(self) -> list[list[bytes]]:
        out, self._out = self._out, []
        return out

    def lost(self, reason: str) -> None:
        self.is_open = False
        self.reasons.append(reason)

    def send(self, message: bytes) -> None:
        self._out.append([message])
        self.channel.wake()


class Yard:
    """Transports of one mesh on 127.0.0.1; `process("orders")` plays a process that holds the key of orders."""

    def __init__(self, directory: Path) -> None:
        self.keys = directory / "keys"
        self._run = directory / "run"
        self._transports: list[ZmqTransport] = []
        self.recorders: dict[ZmqTransport, Recorder] = {}

    def make(self, *names: str) -> None:
        for name in names:
            key_store.make(self.keys, name)

    def process(self, name: str | None, keys: Path | None = None, **options: Any) -> ZmqTransport:
        """A process with the key of that name; None for one without keys."""
        directory = keys or self.keys
        ring = Keyring(directory, read_secret(directory, name), **options) if name is not None else None
        recorder = Recorder()
        made = ZmqTransport(self._run, bind="tcp://127.0.0.1:*", ring=ring, recorder=recorder)
        self._transports.append(made)
        self.recorders[made] = recorder
        return made

    async def listen(self, transport: ZmqTransport, endpoint: str = "tcp://127.0.0.1:*") -> tuple[Any, list[Note]]:
        sessions: list[Note] = []

        def accept(channel: Any) -> Note:
            sessions.append(Note(channel))
            return sessions[-1]

        return await transport.listen(endpoint, accept), sessions

    def dial(self, transport: ZmqTransport, endpoint: str, greeting: bytes = b"hello") -> Note:
        made: list[Note] = []

        def make(channel: Any) -> Note:
            made.append(Note(channel, greeting))
            return made[-1]

        transport.dial(endpoint, make).wake()
        return made[0]

    def refused(self, transport: ZmqTransport) -> dict[str, float]:
        """Links refused so far, by reason."""
        samples = self.recorders[transport].snapshot()["counters"]
        return {one["labels"]["reason"]: one["value"] for one in samples if one["name"] == "links_refused"}

    def reload(self) -> None:
        """Do now what each process does once a second."""
        for transport in self._transports:
            if transport._ring is not None:
                transport._ring.reload()

    async def close(self) -> None:
        for transport in self._transports:
            await transport.close()
