"""A whole mesh in one process: hubs, workers, fakes and a client, each a process of its own as far as they can tell.

Owns: who there is, starting them in order, waiting until all know each other, and ending all of it whatever happened.
Leaves to others: the life of one process (process), where they stand (hosts), faults (faults), fakes (fakes).
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Literal, TypeVar

from mesh import ids
from mesh.calls.answers import Outcome
from mesh.calls.request import Call, Stream
from mesh.clock import Clock, LoopClock, ManualClock, settle
from mesh.discovery.hub import Hub
from mesh.errors import SetupError, Unavailable
from mesh.service.node import Node
from mesh.service.rpc import Rpc
from mesh.service.service import Service
from mesh.service.worker import Worker
from mesh.testing.fake_process import FakeProcess
from mesh.testing.fakes import Fake, Recorded
from mesh.testing.faults import Faults, Target
from mesh.testing.hosts import Host, IpcHost, MemoryHost
from mesh.testing.listening import Heard, listener
from mesh.testing.overrides import settings_for
from mesh.testing.process import ClientProcess, FakeWorker, HubProcess, Process, WorkerProcess

S = TypeVar("S", bound=Service)
Classes = type[Service] | Sequence[type[Service]]

#: Real seconds in which processes must have heard of each other; nothing here takes one on an idle machine.
PATIENCE_S: Final = 10.0
#: Under a hand-turned clock, which does not turn meanwhile: so many times five turns of the loop.
MOST_TURNS: Final = 200
#: What is waited for at the end may wait for the clock: it is turned by this much at a time.
TURN_S: Final = 0.25


class Mesh:
    """A mesh of these services, for the length of an `async with`. See the package for an example.

    Attributes:
        settings: what all of its processes are told.
        clock: of all of them.
        faults: what may go wrong.
    """

    def __init__(
        self,
        *services: Classes | Fake,
        replicas: Mapping[type[Service], int] | None = None,
        transport: Literal["memory", "ipc"] = "memory",
        clock: ManualClock | None = None,
        hubs: int = 1,
        seed: int = 1,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Args:
        services: one worker for each class, or for each list of classes; a `Fake` stands in for a service.
        replicas: how many workers for a class; 1 where it says nothing, 0 for none yet.
        transport: "memory", or "ipc" for real sockets in a private directory.
        clock: real time when None. A ManualClock stands still until `advance`; it needs transport="memory".
        seed: of all that is drawn at random: choices between instances, retries, drops.
        settings: dotted keys over the defaults, "calls.timeout": 2.0; mesh.toml and the environment are not read.

        Raises:
            SetupError: the parts do not fit together. ConfigError: a setting is wrong.
        """
        if clock is not None and transport != "memory":
            raise SetupError('a hand-turned clock cannot turn real sockets; leave it out, or take transport="memory"')
        self.clock: Clock = clock or LoopClock()
        self._manual = clock
        self._seed = seed
        self._drawn = 0
        self._groups = [_group(each) for each in services if not isinstance(each, Fake)]
        self._fakes = [each for each in services if isinstance(each, Fake)]
        self._replicas = dict(replicas or {})
        self._transport = transport
        self._overrides = dict(settings or {})
        self._hub_count = hubs
        self._host: Host | None = None
        self._processes: list[Process] = []
        self._adding: set[asyncio.Task[None]] = set()
        self._node: Node | None = None
        self._faults: Faults | None = None
        known = [cls for group in self._groups for cls in group]
        for cls in self._replicas:
            if cls not in known:
                raise SetupError(f"replicas: {cls.__qualname__} is not among the services")
        self.settings = settings_for(self._overrides, hubs=["ipc:///not/yet"], run_dir=MemoryHost(self.clock, 3).run_dir)

    # --- life ---------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Mesh:
        try:
            await self._start()
        except BaseException:
            await self._end_all()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        errors = await self._end_all()
        if errors and value is None:
            raise errors[0] if len(errors) == 1 else ExceptionGroup("the mesh did not end well", errors)

    async def _start(self) -> None:
        host: Host = IpcHost() if self._transport == "ipc" else MemoryHost(
            self.clock, self.settings.links.heartbeat_timeout_s
        )
        self._host = host
        self._faults = Faults(self, host, self._seed)
        endpoints = [host.hub(number + 1) for number in range(self._hub_count)]
        self.settings = settings_for(self._overrides, hubs=endpoints, run_dir=host.run_dir)
        self._check_needs()
        for endpoint in endpoints:
            await self._start_hub(endpoint, first=True)
        self._node = Node(self.settings, transport=self._new_transport(), clock=self.clock, rng=self._rng())
        self._processes.append(ClientProcess(self._node))
        await self._node.start()
        for fake in self._fakes:
            await self._start_fake(fake)
        await _all(
            self._start_worker(group)
            for group in self._groups
            for _ in range(next((n for cls, n in self._replicas.items() if cls in group), 1))
        )
        await self._until_known()

    async def _end_all(self) -> list[Exception]:
        """Close everything, the last started first; what went wrong. Runs to its end even if the test is cancelled."""
        ending = asyncio.ensure_future(self._close_all())
        cancelled = False
        while not ending.done():
            try:
                await self._turning(asyncio.shield(ending))
            except asyncio.CancelledError:
                if ending.done():
                    break
                cancelled = True
        if cancelled:
            raise asyncio.CancelledError
        return ending.result()

    async def _close_all(self) -> list[Exception]:
        errors: list[Exception] = []
        if self._faults is not None:
            self._faults.heal()
        for task in self._adding:
            task.cancel()
        await asyncio.gather(*self._adding, return_exceptions=True)
        order = (ClientProcess, WorkerProcess, FakeWorker, HubProcess)
        for kind in order:
            for process in [each for each in reversed(self._processes) if isinstance(each, kind) and each.alive]:
                try:
                    await process.close()
                except Exception as exc:
                    errors.append(exc)
        self._processes.clear()
        if self._host is not None:
            self._host.close()
        return errors

    async def _turning(self, waited: asyncio.Future[Any]) -> None:
        """Wait for what may itself wait for a clock that nobody else turns now."""
        if self._manual is None:
            await waited
            return
        while not waited.done():
            await self._manual.advance(TURN_S)
            # What waits for a thread needs real time too.
            await asyncio.sleep(0.001)
        await waited

    # --- the verbs ----------------------------------------------------------------------------------------

    @property
    def node(self) -> Node:
        """The client; see `mesh.Node`."""
        if self._node is None:
            raise SetupError("the mesh runs within its `async with` only")
        return self._node

    @property
    def rpc(self) -> Rpc:
        """As `node.rpc`."""
        return self.node.rpc

    def call(self, target: str, /, *args: Any, **kwargs: Any) -> Call:
        """As `node.call`."""
        return self.node.call(target, *args, **kwargs)

    def stream(self, target: str, /, *args: Any, **kwargs: Any) -> Stream:
        """As `node.stream`."""
        return self.node.stream(target, *args, **kwargs)

    async def scatter(self, target: str, /, *args: Any, **kwargs: Any) -> list[Outcome]:
        """As `node.scatter`."""
        return await self.node.scatter(target, *args, **kwargs)

    async def emit(self, topic: str, data: Any = None, **options: Any) -> None:
        """As `node.emit`."""
        await self.node.emit(topic, data, **options)

    # --- time ---------------------------------------------------------------------------------------------

    async def advance(self, seconds: float) -> None:
        """Turn the clock of everything by `seconds`; what is due happens in order, with all that follows from it.

        Raises:
            SetupError: the mesh runs in real time.
        """
        if self._manual is None:
            raise SetupError("this mesh runs in real time; make it with clock=ManualClock()")
        await self._manual.advance(seconds)

    async def settle(self) -> None:
        """Let everything happen that needs no time to pass: in memory, twenty turns of the loop."""
        await settle()

    # --- who there is -------------------------------------------------------------------------------------

    @property
    def faults(self) -> Faults:
        if self._faults is None:
            raise SetupError("the mesh runs within its `async with` only")
        return self._faults

    @property
    def hubs(self) -> list[Hub]:
        """The living hubs."""
        return [each.hub for each in self._processes if isinstance(each, HubProcess) and each.alive and each.hub]

    def workers(self, service: type[Service] | str) -> list[Worker]:
        """The living workers of a service, in the order of their start."""
        name = _name(service)
        return [each.worker for each in self._processes if isinstance(each, WorkerProcess) and each.ready and name in each.names]

    def instances(self, service: type[S]) -> list[S]:
        """The living instances of a service themselves, in the order of their start."""
        return [
            each
            for worker in self.workers(service)
            for each in worker.services
            if isinstance(each, service)
        ]

    async def start_another(self, service: Classes, *, wait: bool = True) -> Worker:
        """One more worker of these services; ready, and known to everybody unless `wait` is false."""
        worker = await self._start_worker(_group(service))
        if wait:
            await self._until_known()
        return worker

    async def drain(self, worker: Worker) -> bool:
        """End a worker as SIGTERM does; whether it finished what it had in hand within worker.stop_timeout."""
        process = self.process(worker, 0)
        finished = await worker.drain("drained by the test")
        self._processes.remove(process)
        await process.close()
        return finished

    async def restart_hub(self, index: int = 0) -> None:
        """End a hub as kill -9 does, unless it is dead already, and start it anew: it knows nobody, and learns for a
        lease. The others dial it again within a second of the clock."""
        hubs = [each for each in self._processes if isinstance(each, HubProcess)]
        old = hubs[index]
        if old.alive:
            await self.end(old)
        self._processes[self._processes.index(old)] = await self._start_hub(old.endpoint, first=False)

    # --- fakes --------------------------------------------------------------------------------------------

    def fake(self, service: str | type[Service], implementation: Any = None, /, **methods: Any) -> Faked:
        """Stand in for a service: `m.fake("mail", send=None)`; see `Fake` for what methods may be.

        Before the mesh runs this is enough. While it runs, `await m.fake(…)` until everybody knows it. As a decorator
        it takes a function or a class: `@m.fake("mail")`.
        """
        fake = Faked(service, implementation, **methods)
        fake.mesh = self
        self._fakes.append(fake)
        if self._node is not None:
            task = asyncio.get_running_loop().create_task(self._start_fake(fake), name=f"fake {fake.name}")
            self._adding.add(task)
            fake.starting = task
        return fake

    def calls_of(self, target: str) -> list[Recorded]:
        """What fakes were asked of "mail.send", in order."""
        return [call for fake in self._fakes for call in fake.calls_of(target)]

    async def listen(self, *topics: str) -> Heard:
        """Hear of events from now on; the list of them, which grows. Without topics, of all."""
        heard = Heard()
        await self.start_another(listener(topics or ("#",), heard))
        return heard

    # --- for faults ---------------------------------------------------------------------------------------

    def process(self, target: Target, index: int) -> Process:
        """The played process that a target names.

        Raises:
            SetupError: there is none.
        """
        if isinstance(target, (Worker, Node)):
            found = [each for each in self._processes if each.node is getattr(target, "node", target)]
        else:
            name = _name(target)
            found = [each for each in self._processes if name in each.names and each.alive]
        if index >= len(found):
            raise SetupError(f"{_shown(target)}: {len(found)} of it run, there is no number {index}")
        return found[index]

    async def end(self, process: Process) -> None:
        """End a process as kill -9 does."""
        assert self._host is not None
        await process.vanish(self._host)
        if not isinstance(process, HubProcess):
            self._processes.remove(process)

    # --- starting -----------------------------------------------------------------------------------------

    def _new_transport(self) -> Any:
        assert self._host is not None
        return self._host.transport(self.settings)

    def _rng(self) -> random.Random:
        self._drawn += 1
        return random.Random(f"{self._seed}/{self._drawn}")

    async def _start_hub(self, endpoint: str, *, first: bool) -> HubProcess:
        process = HubProcess(self._new_transport(), self.clock, self.settings, endpoint)
        if first:
            self._processes.append(process)
        await process.start(first=first, epoch=ids.epoch() + self._drawn)
        self._drawn += 1
        return process

    async def _start_worker(self, group: Sequence[type[Service]]) -> Worker:
        worker = Worker(group, self.settings, transport=self._new_transport(), clock=self.clock, rng=self._rng())
        process = WorkerProcess(worker)
        self._processes.append(process)
        try:
            await worker.start()
        except BaseException:
            self._processes.remove(process)
            await process.close()
            raise
        return worker

    async def _start_fake(self, fake: Fake) -> None:
        node = Node(
            self.settings,
            identity=ids.instance_id(fake.name),
            transport=self._new_transport(),
            clock=self.clock,
            rng=self._rng(),
        )
        process = FakeWorker(FakeProcess(fake, node))
        self._processes.append(process)
        await process.running.start()

    def _check_needs(self) -> None:
        """A need that nobody fills would wait for ever; while the mesh starts there is nobody to fill it later."""
        names = {cls.name for group in self._groups for cls in group} | {fake.name for fake in self._fakes}
        for group in self._groups:
            for cls in group:
                for need in cls.needs:
                    if need not in names:
                        raise SetupError(
                            f"{cls.__qualname__} needs {need!r}: add its class, or Fake({need!r}, …), to the mesh"
                        )

    async def _until_known(self) -> None:
        """Everybody has heard of everybody, and the client has its links."""
        expected = {each for process in self._processes for each in _registered(process)}
        nodes = [process.node for process in self._processes if process.node is not None and process.alive]
        for name in sorted({name for process in self._processes for name in _services(process)}):
            self.node.client.use(name)

        def known() -> bool:
            return all(node.table.get(instance) is not None for node in nodes for instance in expected) and all(
                self.node.client.links(service) >= len(ready)
                for service, ready in _by_service(self._processes).items()
            )

        give_up_at = time.monotonic() + PATIENCE_S
        turns = 0
        while not known():
            turns += 1
            if turns > MOST_TURNS if self._manual is not None else time.monotonic() > give_up_at:
                mend = "" if self._manual is None else "; if a hub is away, turn the clock until it is back"
                raise Unavailable(f"not everybody has come to know everybody{mend}")
            await settle(5)
            # Sockets need a moment; memory needs none.
            await asyncio.sleep(0 if self._transport == "memory" else 0.001)


class Faked(Fake):
    """A fake of one mesh. While that runs, `await` it: then everybody knows it."""

    mesh: Mesh
    starting: asyncio.Task[None] | None = None

    def __await__(self) -> Iterator[Any]:
        return self._known().__await__()

    async def _known(self) -> Faked:
        if self.starting is not None:
            await self.starting
            await self.mesh._until_known()
        return self


async def _all(starting: Iterator[Coroutine[Any, Any, Any]] | Any) -> None:
    """All at once, for they may need each other; when one fails, the others are stopped and its error is raised."""
    tasks = [asyncio.ensure_future(each) for each in starting]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _group(classes: Classes) -> tuple[type[Service], ...]:
    return (classes,) if isinstance(classes, type) else tuple(classes)


def _name(target: type[Service] | str | Fake) -> str:
    return target if isinstance(target, str) else target.name


def _shown(target: Target) -> str:
    if isinstance(target, (Worker, Node)):
        return target.identity
    return _name(target)


def _registered(process: Process) -> list[str]:
    if isinstance(process, WorkerProcess) and process.ready:
        return process.worker.instance_ids
    if isinstance(process, FakeWorker) and process.alive and process.node is not None:
        return [process.node.identity]
    return []


def _services(process: Process) -> tuple[str, ...]:
    return process.names if _registered(process) else ()


def _by_service(processes: Sequence[Process]) -> dict[str, list[Process]]:
    found: dict[str, list[Process]] = {}
    for process in processes:
        for name in _services(process):
            found.setdefault(name, []).append(process)
    return found


