"""A whole mesh in one process: hubs, workers, fakes and a client, each simulated as a separate process.

Owns: the interface for tests: the parts of a mesh, the verbs, time, and ending the mesh in every case.
Leaves to others: processes (population), hosts (hosts), faults (faults), fakes (fakes), tasks and state (durable).
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Literal, TypeVar

from mesh.calls.answers import Outcome
from mesh.calls.interceptors import Interceptor
from mesh.calls.request import Call, Stream
from mesh.clock import Clock, LoopClock, ManualClock, settle
from mesh.discovery.hub import Hub
from mesh.errors import SetupError
from mesh.node.node import Node
from mesh.node.rpc import Rpc
from mesh.service.service import Service
from mesh.testing.durable import DurableView
from mesh.testing.fakes import Fake, Recorded
from mesh.testing.faults import Faults
from mesh.testing.hosts import Host, IpcHost, MemoryHost
from mesh.testing.listening import Heard, listener
from mesh.testing.overrides import settings_for
from mesh.testing.population import Population
from mesh.worker.worker import Worker

S = TypeVar("S", bound=Service)
Classes = type[Service] | Sequence[type[Service]]

#: Step of the manual clock while the mesh ends: the end may wait for the clock.
TURN_S: Final = 0.25


class Mesh(DurableView):
    """A mesh of these services, for the duration of an `async with`. See the package for an example.

    Its engines are in memory: tasks, durable events, state, schedules and locks work, shared by all of its processes.

    Attributes:
        settings: the settings of all its processes.
        clock: the clock of all its processes.
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
        interceptors: Sequence[Interceptor] = (),
    ) -> None:
        """Args:
        services: one worker for each class, or for each list of classes; a `Fake` replaces a service.
        replicas: how many workers for a class; 1 for a class that is missing, 0 for none yet.
        transport: "memory", or "ipc" for real sockets in a private directory.
        clock: real time when None. A ManualClock stands still until `advance`; it needs transport="memory".
        hubs: the number of hubs.
        seed: of all random choices: between instances, retries, drops.
        settings: over the defaults, by dotted keys, {"calls.timeout": 2.0}, or as in mesh.toml, {"calls": {"timeout":
            "2s"}}; mesh.toml and the environment are not read.
        interceptors: around the calls of the test itself, as `connect(interceptors=…)`.

        Raises:
            SetupError: the parts do not fit together. ConfigError: a setting is wrong.
        """
        if clock is not None and transport != "memory":
            raise SetupError('a manual clock cannot drive real sockets; omit it, or use transport="memory"')
        self.clock: Clock = clock or LoopClock()
        self._manual = clock
        self._seed = seed
        self._groups = [_group(each) for each in services if not isinstance(each, Fake)]
        self._fakes = [each for each in services if isinstance(each, Fake)]
        self._replicas = dict(replicas or {})
        self._transport = transport
        self._overrides = dict(settings or {})
        self._hub_count = hubs
        self._interceptors = tuple(interceptors)
        self._population: Population | None = None
        self._adding: set[asyncio.Task[None]] = set()
        self._node: Node | None = None
        self._faults: Faults | None = None
        known = [cls for group in self._groups for cls in group]
        for cls in self._replicas:
            if cls not in known:
                raise SetupError(f"replicas: {cls.__qualname__} is not among the services")
        # Check the settings now; the real endpoints are only known after the start.
        in_memory = MemoryHost(self.clock, 0.0)
        self.settings = settings_for(self._overrides, hubs=[in_memory.hub(1)], run_dir=in_memory.run_dir)

    # --- life ---------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Mesh:
        try:
            await self._start()
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        errors = await self._end()
        if errors and value is None:
            raise errors[0] if len(errors) == 1 else ExceptionGroup("the mesh did not stop cleanly", errors)

    async def _start(self) -> None:
        self._check_needs()
        silence_s = self.settings.links.heartbeat_timeout_s
        host: Host = IpcHost() if self._transport == "ipc" else MemoryHost(self.clock, silence_s)
        endpoints = [host.hub(number + 1) for number in range(self._hub_count)]
        self.settings = settings_for(self._overrides, hubs=endpoints, run_dir=host.run_dir)
        self._population = Population(host, self.settings, self.clock, self._seed)
        self._faults = Faults(self._population, host, self._seed)
        for endpoint in endpoints:
            await self._population.start_hub(endpoint)
        self._node = await self._population.start_client(self._interceptors)
        for fake in self._fakes:
            await self._population.start_fake(fake)
        await _all(
            self._population.start_worker(group)
            for group in self._groups
            for _ in range(next((count for cls, count in self._replicas.items() if cls in group), 1))
        )
        await self._population.until_known(self._node)
        await self._node.interceptors.start(self._node)

    def _check_needs(self) -> None:
        """Reject a need without a service: no service can be added while the mesh starts, so the start would hang."""
        names = {cls.name for group in self._groups for cls in group} | {fake.name for fake in self._fakes}
        for cls in [cls for group in self._groups for cls in group]:
            for need in cls.needs:
                if need not in names:
                    raise SetupError(
                        f"{cls.__qualname__} needs {need!r}: add its class, or Fake({need!r}, …), to the mesh"
                    )

    async def _end(self) -> list[Exception]:
        """End all processes; returns the errors. It completes even when the test is cancelled meanwhile."""
        ending = asyncio.ensure_future(self._close())
        cancelled: asyncio.CancelledError | None = None
        while not ending.done():
            try:
                await self._turning(ending)
            except asyncio.CancelledError as exc:
                cancelled = exc
        if cancelled is not None:
            raise cancelled
        return ending.result()

    async def _close(self) -> list[Exception]:
        if self._faults is not None:
            self._faults.heal()
        for task in self._adding:
            task.cancel()
        await asyncio.gather(*self._adding, return_exceptions=True)
        return await self._population.close() if self._population is not None else []

    async def _turning(self, ending: asyncio.Future[Any]) -> None:
        """Wait for `ending`, and advance a manual clock meanwhile, for which it may wait."""
        if self._manual is None:
            await asyncio.wait([ending])
            return
        while not ending.done():
            await self._manual.advance(TURN_S)
            # Threads need real time, too.
            await asyncio.sleep(0.001)

    # --- the verbs ----------------------------------------------------------------------------------------

    @property
    def node(self) -> Node:
        """The client; see `mesh.Node`."""
        return _running(self._node)

    @property
    def _turned_by_hand(self) -> bool:
        return self._manual is not None

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

    async def listen(self, *topics: str) -> Heard:
        """Record events of these topics from now on; returns the growing list. Without topics, records all events."""
        heard = Heard()
        await self.start_another(listener(topics or ("#",), heard))
        return heard

    # --- time and faults ----------------------------------------------------------------------------------

    async def advance(self, seconds: float) -> None:
        """Advance the clock of all processes by `seconds`; everything due happens in order, with its consequences.

        Raises:
            SetupError: the mesh runs in real time.
        """
        if self._manual is None:
            raise SetupError("this mesh runs in real time; make it with clock=ManualClock()")
        await self._manual.advance(seconds)

    async def settle(self) -> None:
        """Let everything happen that takes no time: in memory, twenty rounds of the loop."""
        await settle()

    @property
    def faults(self) -> Faults:
        """Fault injection."""
        return _running(self._faults)

    # --- who there is -------------------------------------------------------------------------------------

    @property
    def hubs(self) -> list[Hub]:
        """The running hubs."""
        return [each.hub for each in _running(self._population).hubs() if each.alive and each.hub is not None]

    def workers(self, service: type[Service] | str) -> list[Worker]:
        """The running workers of a service, in the order of their start."""
        return _running(self._population).workers(service if isinstance(service, str) else service.name)

    def instances(self, service: type[S]) -> list[S]:
        """The running instances (the objects) of a service, in the order of their start."""
        return [each for worker in self.workers(service) for each in worker.services if isinstance(each, service)]

    async def start_another(self, service: Classes, *, wait: bool = True, canary: bool = False) -> Worker:
        """Start one more worker of these services. It is ready and, unless `wait` is false, known to all processes.

        A `canary` gets no calls before `await m.call("$worker.share", 0.05, "name", 10.0, instance=ID)` gives it 5 % of
        them, here for 10 s.
        """
        worker = await _running(self._population).start_worker(_group(service), canary=canary)
        if wait:
            await self._until_known()
        return worker

    async def drain(self, worker: Worker) -> bool:
        """End a worker as SIGTERM does; whether it finished its work within worker.stop_timeout."""
        return await _running(self._population).drain(worker)

    async def restart_hub(self, index: int = 0) -> None:
        """End a hub as kill -9 does, unless it is dead already, and start it again with an empty registry, which it
        learns again for the time of a lease. The other processes reconnect within a second of the clock."""
        population = _running(self._population)
        hub = population.hubs()[index]
        if hub.alive:
            await population.end(hub)
        await population.start_hub(hub.endpoint)

    async def _until_known(self) -> None:
        await _running(self._population).until_known(self.node)

    # --- fakes --------------------------------------------------------------------------------------------

    def fake(self, service: str | type[Service], implementation: Any = None, /, **methods: Any) -> MeshFake:
        """Replace a service by a fake: `m.fake("mail", send=None)`; see `Fake` for the values of methods.

        Before the mesh runs this is enough. While it runs, use `await m.fake(…)`, which returns when all processes know
        the fake. As a decorator it takes a function or a class: `@m.fake("mail")`.
        """
        fake = MeshFake(self, service, implementation, methods)
        self._fakes.append(fake)
        if self._node is not None:
            starting = _running(self._population).start_fake(fake)
            fake.starting = asyncio.get_running_loop().create_task(starting, name=f"fake {fake.name}")
            self._adding.add(fake.starting)
        return fake

    def calls_of(self, target: str) -> list[Recorded]:
        """The calls of "mail.send" that fakes received, in order."""
        return [call for fake in self._fakes for call in fake.calls_of(target)]


class MeshFake(Fake):
    """A fake of one mesh. While the mesh runs, `await` the fake to wait until all processes know it."""

    def __init__(
        self, mesh: Mesh, service: str | type[Service], implementation: Any, methods: Mapping[str, Any]
    ) -> None:
        super().__init__(service, implementation, **methods)
        self.starting: asyncio.Task[None] | None = None
        self._mesh = mesh

    def __await__(self) -> Generator[Any, None, MeshFake]:
        return self._known().__await__()

    async def _known(self) -> MeshFake:
        if self.starting is not None:
            await self.starting
            await self._mesh._until_known()
        return self


T = TypeVar("T")


def _running(part: T | None) -> T:
    if part is None:
        raise SetupError("the mesh runs only inside its `async with`")
    return part


async def _all(starting: Iterable[Coroutine[Any, Any, Any]]) -> None:
    """Run all concurrently, as they may need each other; when one fails, the others are cancelled and it raises."""
    tasks = [asyncio.ensure_future(each) for each in starting]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _group(classes: Classes) -> tuple[type[Service], ...]:
    return (classes,) if isinstance(classes, type) else tuple(classes)
