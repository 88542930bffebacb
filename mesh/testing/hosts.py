"""The simulated machine of a mesh in one process: in memory, or with real sockets in a private directory.

Owns: endpoints, making a transport for each simulated process, and ending one as kill -9 does.
Leaves to others: what runs in those processes (population), faults (faults).
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from mesh.clock import Clock
from mesh.config import Settings
from mesh.transport.contract import Buffer, MakeSession, Transport
from mesh.transport.memory import MemoryListener, MemoryNetwork, MemoryTransport
from mesh.transport.memory_events import MemorySubscriber
from mesh.transport.zmq_transport import from_settings

#: The path of a Unix socket may have 107 bytes; a worker's own name takes up to some 60 of them.
LONGEST_DIRECTORY: Final = 40


class Host(Protocol):
    """Provides endpoints and transports for the processes of a mesh."""

    @property
    def run_dir(self) -> Path: ...

    def hub(self, number: int) -> str:
        """The endpoint of a hub, numbered from 1."""

    def transport(self, settings: Settings) -> Transport:
        """A transport for one more process."""

    async def vanish(self, transport: Transport) -> None:
        """End the process of this transport: peers see its connections end, without a goodbye."""

    def close(self) -> None:
        """Remove everything that the host created."""


class RecordingTransport(MemoryTransport):
    """The transport of one simulated process in memory; faults name the process by its listening `endpoints`."""

    def __init__(self, network: MemoryNetwork) -> None:
        super().__init__(network)
        self.endpoints: list[str] = []

    async def listen(self, endpoint: str, accept: MakeSession) -> MemoryListener:
        listener = await super().listen(endpoint, accept)
        self.endpoints.append(endpoint)
        return listener

    def subscriber(self, endpoint: str, on_event: Callable[[str, Buffer], None]) -> MemorySubscriber:
        subscriber = super().subscriber(endpoint, on_event)
        self.endpoints.append(endpoint)
        return subscriber


class MemoryHost:
    """A host in memory, without sockets and files."""

    def __init__(self, clock: Clock, silence_s: float) -> None:
        self.network = MemoryNetwork(clock, silence_s=silence_s)
        self.run_dir = Path(tempfile.gettempdir()) / "mesh-in-memory"

    def hub(self, number: int) -> str:
        return f"mem://hub-{number}"

    def transport(self, settings: Settings) -> RecordingTransport:
        return RecordingTransport(self.network)

    async def vanish(self, transport: Transport) -> None:
        assert isinstance(transport, MemoryTransport)
        self.network.kill(transport)
        # Close its own sessions, so that their resources are released; nothing that they send gets out.
        await transport.close()
        transport.dead = True

    def close(self) -> None:
        pass


class IpcHost:
    """A host with real sockets in a directory that is created and removed with it."""

    def __init__(self) -> None:
        base = tempfile.gettempdir()
        if len(base) > LONGEST_DIRECTORY and Path("/tmp").is_dir():
            base = "/tmp"  # mkdtemp makes a private one in it
        self.run_dir = Path(tempfile.mkdtemp(prefix="mesh-", dir=base))

    def hub(self, number: int) -> str:
        return f"ipc://{self.run_dir}/hub{'' if number == 1 else f'-{number}'}.sock"

    def transport(self, settings: Settings) -> Transport:
        return from_settings(settings)

    async def vanish(self, transport: Transport) -> None:
        await transport.close()

    def close(self) -> None:
        shutil.rmtree(self.run_dir, ignore_errors=True)
