"""The processes of a mesh under test: starting them, waiting until they know each other, always ending them.

Owns: the list of simulated processes, the engine in memory that they share, and the order in which they end.
Leaves to others: the lifecycle of one process (process), hosts (hosts), the interface for tests (whole).
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from functools import partial
from typing import Final

from mesh import ids
from mesh.calls.interceptors import Interceptor
from mesh.clock import Clock, ManualClock, settle
from mesh.config import Settings
from mesh.engines.authorization import Authorization, Refusal
from mesh.engines.memory import Memory, MemoryEngine
from mesh.engines.registry import Makers
from mesh.errors import SetupError, Unavailable
from mesh.node.node import Node
from mesh.policy.access import Access
from mesh.service.service import Service
from mesh.telemetry.logs import get_logger
from mesh.testing.fake_process import FakeProcess
from mesh.testing.fakes import Fake
from mesh.testing.faults import Target
from mesh.testing.hosts import Host
from mesh.testing.process import ClientProcess, FakeWorker, HubProcess, Process, WorkerProcess
from mesh.worker.worker import Worker

log = get_logger("mesh.testing")

#: Real seconds in which processes must learn of each other; on an idle machine it takes less than one.
PATIENCE_S: Final = 10.0
#: The same limit with a manual clock, which stands still meanwhile: so many times five rounds of the loop.
MOST_TURNS: Final = 200

#: The order of ending. Workers end before the fakes that their `stopped` hooks may call; hubs end last.
ENDING: Final = (ClientProcess, WorkerProcess, FakeWorker, HubProcess)


class Population:
    """The processes of one mesh."""

    def __init__(self, host: Host, settings: Settings, clock: Clock, seed: int) -> None:
        self.processes: list[Process] = []
        self._host = host
        self._settings = settings
        self._clock = clock
        self._seed = seed
        self._drawn = 0
        self.memory = Memory(
            clock,
            lease_s=settings.store.lease_s,
            unknown_after_s=settings.tasks.unknown_after_s,
            retention_s=settings.events.retention_s,
        )
        access = Access.of(settings.access)
        self._authorization = (
            Authorization(access, "the test", subscription=self.memory.subscribed, denied=_denied)
            if access is not None
            else None
        )
        self._engine_lost = False

    def _engines(self, role: str) -> Makers:
        """The factories with which a process of this role makes its engine in memory."""
        return {"memory": partial(self._engine, role)}

    def _engine(self, role: str) -> MemoryEngine:
        """An engine for one more process, on the data that all processes share."""
        engine = MemoryEngine(self.memory, self._authorization, role)
        if self._engine_lost:
            engine.cut()
        return engine

    def lose_engine(self, lost: bool) -> None:
        """Disconnect every process from the engine in memory, or reconnect it."""
        self._engine_lost = lost
        for process in self.processes:
            for engine in process.engines():
                if lost:
                    engine.cut()
                else:
                    engine.mend()

    def _draw(self) -> int:
        self._drawn += 1
        return self._drawn

    def _rng(self) -> random.Random:
        return random.Random(f"{self._seed}/{self._draw()}")

    # --- starting -----------------------------------------------------------------------------------------

    async def start_hub(self, endpoint: str) -> None:
        """Start the first hub on this endpoint, or the successor of a dead one, which must learn the registry again."""
        dead = next((each for each in self.hubs() if each.endpoint == endpoint), None)
        process = HubProcess(self._host.transport(self._settings), self._clock, self._settings, endpoint)
        self.processes.append(process)
        if dead is not None:
            self.processes.remove(dead)
        # Hubs may start within one millisecond; the later one must have the later epoch.
        await process.start(first=dead is None, epoch=ids.epoch() + self._draw())

    async def start_client(self, interceptors: Sequence[Interceptor] = ()) -> Node:
        node = self._node("", interceptors)
        self.processes.append(ClientProcess(node))
        await node.start()
        return node

    async def start_worker(self, classes: Sequence[type[Service]], *, canary: bool = False) -> Worker:
        """Start a worker. Raises: whatever its start raises, after the worker has been removed."""
        transport = self._host.transport(self._settings)
        worker = Worker(
            classes,
            self._settings,
            transport=transport,
            clock=self._clock,
            rng=self._rng(),
            engines=self._engines(classes[0].name if classes else ""),
            canary=canary,
        )
        process = WorkerProcess(worker)
        self.processes.append(process)
        try:
            await worker.start()
        except BaseException:
            self.processes.remove(process)
            await process.close()
            raise
        return worker

    async def start_fake(self, fake: Fake) -> None:
        process = FakeWorker(FakeProcess(fake, self._node(ids.instance_id(fake.name))))
        self.processes.append(process)
        await process.running.start()

    def _node(self, identity: str, interceptors: Sequence[Interceptor] = ()) -> Node:
        transport = self._host.transport(self._settings)
        return Node(
            self._settings,
            identity=identity,
            transport=transport,
            clock=self._clock,
            rng=self._rng(),
            engines=self._engines(identity.rpartition("-")[0] or "client"),
            interceptors=interceptors,
        )

    # --- who there is -------------------------------------------------------------------------------------

    def hubs(self) -> list[HubProcess]:
        """All hubs in the order of their endpoints, including dead ones, which may be started again."""
        found = [each for each in self.processes if isinstance(each, HubProcess)]
        return sorted(found, key=lambda hub: self._settings.mesh.hubs.index(hub.endpoint))

    def workers(self, service: str) -> list[Worker]:
        """The ready workers of a service, in the order of their start."""
        return [
            each.worker
            for each in self.processes
            if isinstance(each, WorkerProcess) and each.ready and service in each.names
        ]

    def find(self, target: Target, index: int) -> Process:
        """The process that a target names.

        Raises:
            SetupError: there is no such process.
        """
        if isinstance(target, (Worker, Node)):
            node = target.node if isinstance(target, Worker) else target
            found = [each for each in self.processes if each.node is node]
            shown = node.identity
        elif target == "hub":
            found, shown = [*self.hubs()], "hub"
        else:
            shown = target if isinstance(target, str) else target.name
            found = [each for each in self.processes if shown in each.names and each.alive]
        if index >= len(found):
            raise SetupError(f"{shown}: {len(found)} running; there is no index {index}")
        return found[index]

    async def until_known(self, client: Node) -> None:
        """Return when all processes know each other, and the client has its links.

        Raises:
            Unavailable: this takes too long.
        """
        registered = {process: _instances(process) for process in self.processes}
        nodes = [each.node for each in self.processes if each.node is not None and each.alive]
        links: dict[str, int] = {}
        for process, instances in registered.items():
            for name in process.names if instances else ():
                links[name] = links.get(name, 0) + 1
                client.client.use(name)

        def known() -> bool:
            return all(
                node.table.get(instance) is not None
                for node in nodes
                for instances in registered.values()
                for instance in instances
            ) and all(client.client.links(name) >= count for name, count in links.items())

        manual = isinstance(self._clock, ManualClock)
        give_up_at = time.monotonic() + PATIENCE_S
        turns = 0
        while not known():
            turns += 1
            if turns > MOST_TURNS if manual else time.monotonic() > give_up_at:
                remedy = "; if a hub is down, advance the clock until it is back" if manual else ""
                raise Unavailable(f"not all processes have discovered each other{remedy}")
            await settle(5)
            # Sockets need real time; memory does not, and a manual clock implies memory.
            await asyncio.sleep(0 if manual else 0.0005)

    # --- ending -------------------------------------------------------------------------------------------

    async def end(self, process: Process) -> None:
        """End a process as kill -9 does."""
        if not isinstance(process, HubProcess):
            self.processes.remove(process)
        await process.vanish(self._host)

    async def drain(self, worker: Worker) -> bool:
        """Drain a worker as SIGTERM does; whether it finished in time."""
        process = self.find(worker, 0)
        finished = await worker.drain("drained by the test")
        self.processes.remove(process)
        await process.close()
        return finished

    async def close(self) -> list[Exception]:
        """End all processes, the last started first; returns the errors."""
        errors: list[Exception] = []
        for kind in ENDING:
            for process in [each for each in reversed(self.processes) if isinstance(each, kind) and each.alive]:
                try:
                    await process.close()
                except Exception as exc:
                    errors.append(exc)
        self.processes.clear()
        self.memory.close()
        self._host.close()
        return errors


def _denied(refusal: Refusal, fresh: bool) -> None:
    if fresh:
        log.warning("store.forbidden", caller=refusal.caller, right=refusal.right, target=refusal.target)


def _instances(process: Process) -> list[str]:
    """The ids of the instances that the process has registered."""
    if isinstance(process, WorkerProcess):
        return process.worker.instance_ids if process.ready else []
    if isinstance(process, FakeWorker) and process.alive:
        return [process.node.identity]
    return []
