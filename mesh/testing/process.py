"""One simulated process: its own transport, and what runs on it.

Owns: the lifecycle of each kind (hub, client, worker, fake): starting, ending with and without a goodbye.
Leaves to others: the list of processes (population).
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from mesh import ids
from mesh.clock import Clock
from mesh.config import Settings
from mesh.discovery.hub import Hub
from mesh.node.node import Node
from mesh.testing.fake_process import FakeProcess
from mesh.testing.hosts import Host
from mesh.transport.contract import Transport
from mesh.worker.worker import Stage, Worker


@runtime_checkable
class Breakable(Protocol):
    """An engine that can simulate faults of its process. The engine in memory can; others may."""

    def cut(self) -> None:
        """Cut the connection until `mend`."""

    def mend(self) -> None:
        """End a cut."""

    def kill(self) -> None:
        """Die as by kill -9: sessions fall silent, and nothing is received any more."""


class Process:
    """The common base of all kinds.

    Attributes:
        names: the services that it runs; ("hub",) for a hub.
        node: its endpoint in the mesh; None for a hub.
        alive: false once it has ended, in either way.
    """

    node: Node | None = None

    def __init__(self, names: tuple[str, ...], transport: Transport) -> None:
        self.names = names
        self.transport = transport
        self.alive = True

    async def vanish(self, host: Host) -> None:
        """End as kill -9 does."""
        self.alive = False
        for engine in self.engines():
            engine.kill()
        await host.vanish(self.transport)
        await self._bury()

    def engines(self) -> list[Breakable]:
        """Its engines that can be broken; none when the process is dead. Others end in good order."""
        made = self.node.durable.engines.made if self.node is not None else ()
        return [each for each in made if isinstance(each, Breakable)]

    async def close(self) -> None:
        """End normally."""
        self.alive = False
        await self._close()
        await self.transport.close()

    async def _bury(self) -> None:
        """Stop what the dead process still runs in this loop; nothing of it reaches other processes."""
        if self.node is not None:
            await self.node.close()

    async def _close(self) -> None:
        if self.node is not None:
            await self.node.close()


class ClientProcess(Process):
    """The mesh's own node."""

    def __init__(self, node: Node) -> None:
        super().__init__((), node.transport)
        self.node: Node = node

    async def _close(self) -> None:
        await self.node.interceptors.stop()
        await self.node.close()


class WorkerProcess(Process):
    """A worker."""

    def __init__(self, worker: Worker) -> None:
        super().__init__(tuple(type(service).name for service in worker.services), worker.node.transport)
        self.worker = worker
        self.node: Node = worker.node

    @property
    def ready(self) -> bool:
        return self.alive and self.worker.stage is Stage.READY

    async def _bury(self) -> None:
        # A dead process runs no hooks.
        self.worker._began.clear()
        self.node.interceptors.abandon()
        if self.worker.shift is not None:
            self.worker.shift.abandon("killed")
        # It sends no goodbye either: calls made while it ends fail at once, instead of waiting for a clock that does
        # not advance meanwhile.
        self.node.client.close()
        await self.worker.stop()

    async def _close(self) -> None:
        await self.worker.stop()


class FakeWorker(Process):
    """A fake."""

    def __init__(self, running: FakeProcess) -> None:
        super().__init__((running.fake.name,), running.node.transport)
        self.running = running
        self.node: Node = running.node

    async def _bury(self) -> None:
        self.running.abandon()
        self.node.client.close()
        await self.running.close()

    async def _close(self) -> None:
        await self.running.close()


class HubProcess(Process):
    """A hub."""

    def __init__(self, transport: Transport, clock: Clock, settings: Settings, endpoint: str) -> None:
        super().__init__(("hub",), transport)
        self.endpoint = endpoint
        self._transport = transport
        self._clock = clock
        self._lease_s = settings.discovery.lease_s
        self.hub: Hub | None = None

    async def start(self, *, first: bool, epoch: int) -> None:
        """Listen. The first hub has no registry to learn; a successor learns it for the time of a lease."""
        self.hub = Hub(
            self._transport,
            self._clock,
            identity=ids.instance_id("hub"),
            epoch=epoch,
            lease_s=self._lease_s,
            learn_s=0.0 if first else None,
        )
        await self.hub.start(self.endpoint)

    async def _bury(self) -> None:
        await self._close()

    async def _close(self) -> None:
        if self.hub is not None:
            await self.hub.stop(0.0)
