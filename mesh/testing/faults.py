"""Fault injection: failures of the processes of a mesh under test, and of the links between them.

Owns: naming a process, and which faults each transport supports.
Leaves to others: losing messages (transport.memory), ending a process (population).
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Protocol

from mesh.errors import SetupError
from mesh.node.node import Node
from mesh.service.service import Service
from mesh.testing.fakes import Fake
from mesh.testing.hosts import Host, MemoryHost, RecordingTransport
from mesh.testing.process import Breakable
from mesh.transport.memory import MemoryNetwork
from mesh.worker.worker import Worker

if TYPE_CHECKING:
    from mesh.testing.process import Process

#: The target of a fault: a worker; a service by class or name (its first process, or that at `index`); a fake; the
#: mesh's own node; "hub".
Target = Worker | type[Service] | str | Fake | Node


class Everybody(Protocol):
    """The part of the population that faults use."""

    def find(self, target: Target, index: int) -> Process: ...
    async def end(self, process: Process) -> None: ...
    def lose_engine(self, lost: bool) -> None: ...


class Faults:
    """`m.faults`. All but `kill` and `lose_engine` need transport="memory". Targets: see `Target`."""

    def __init__(self, everybody: Everybody, host: Host, seed: int) -> None:
        self._everybody = everybody
        self._host = host
        self._rng = random.Random(seed)
        self._cut: list[Breakable] = []

    async def kill(self, target: Target, index: int = 0) -> None:
        """End a process as kill -9 does: no goodbye, no `stopped` hook; its handlers and timers stop where they are.
        Its instances stay registered until their leases run out."""
        await self._everybody.end(self._everybody.find(target, index))

    def drop(self, target: Target, share: float = 1.0, *, index: int = 0) -> None:
        """Lose this share (0 to 1) of the messages to and from the process on links that others dialled to it."""
        for endpoint in self._endpoints(target, index):
            self._network.drop(endpoint, share, self._rng)

    def delay(self, target: Target, seconds: float, *, index: int = 0) -> None:
        """Delay messages to and from the process by `seconds` each way; 0 ends the delay."""
        for endpoint in self._endpoints(target, index):
            self._network.delay(endpoint, seconds)

    def cut(self, target: Target, *, index: int = 0) -> int:
        """Break every connection that others have to the process; returns how many there were. They may dial again."""
        return sum(self._network.cut(endpoint) for endpoint in self._endpoints(target, index))

    def partition(self, target: Target, *, index: int = 0) -> None:
        """Separate the process from all others, and from the engine in memory, until `heal`. Connections that are
        silent for links.heartbeat_timeout are lost, as are the leases of a worker that is silent for store.lease."""
        self._network.partition(self._transport(target, index))
        for engine in self._everybody.find(target, index).engines():
            engine.cut()
            self._cut.append(engine)

    def lose_engine(self) -> None:
        """Make the engine in memory unreachable until `heal`, like a store that is down."""
        self._everybody.lose_engine(True)

    def heal(self) -> None:
        """End all drops, delays, partitions and the loss of the engine; messages held back by a partition arrive."""
        self._everybody.lose_engine(False)
        for engine in self._cut:
            engine.mend()
        self._cut.clear()
        if isinstance(self._host, MemoryHost):
            self._host.network.heal()

    @property
    def _network(self) -> MemoryNetwork:
        if not isinstance(self._host, MemoryHost):
            raise SetupError(
                'real sockets support no other fault than kill; for this one, make the mesh with transport="memory"'
            )
        return self._host.network

    def _transport(self, target: Target, index: int) -> RecordingTransport:
        transport = self._everybody.find(target, index).transport
        if not isinstance(transport, RecordingTransport):
            raise SetupError(
                'real sockets support no other fault than kill; for this one, make the mesh with transport="memory"'
            )
        return transport

    def _endpoints(self, target: Target, index: int) -> list[str]:
        endpoints = self._transport(target, index).endpoints
        if not endpoints:
            raise SetupError(
                "this process has no endpoint: apply the fault to the processes that it calls, or partition it"
            )
        return endpoints
