"""The child of `mesh dev`: hub, store, gateway and workers on one event loop.

Owns: which services run, and the order of starting and stopping.
Leaves to others: each part (discovery.hub, store.service, gateway.app, worker.worker), restarting (reload).

Start: hub → store, workers and gateway side by side. Stop: gateway → workers → store → hub, as under supervisor.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, NamedTuple

from mesh import ids
from mesh.cli.dev_programs import DevPrograms, declared
from mesh.cli.loading import load, named
from mesh.clock import LoopClock
from mesh.config import Settings
from mesh.config.env_file import read_env_file
from mesh.discovery.admission import Limits
from mesh.discovery.hub import Hub
from mesh.discovery.record import Instance
from mesh.discovery.serve import listen
from mesh.errors import AddressInUse
from mesh.gateway import app
from mesh.node.node import Node
from mesh.policy.access import Access
from mesh.policy.liveness import EXIT_MEMORY
from mesh.service.service import Service
from mesh.store.service import Store
from mesh.transport.zmq_transport import from_settings
from mesh.worker.watchdog import Watchdog
from mesh.worker.worker import Stage, Worker

#: The limits of draining, so that a reload does not wait long. The parent's limit is above their sum.
DRAIN_S: Final = 2.0
PARENT_DRAIN_S: Final = 3 * DRAIN_S + 2.0

Classes = list[type[Service]]


class Taken(AddressInUse):
    """Another mesh runs in this project: its hub has the address. No change of a source file helps."""


class Running(NamedTuple):
    """What runs, for the start-up note.

    Attributes:
        http: the gateway's URL.
        instances: the records of the services.
    """

    http: str
    instances: list[Instance]


def chosen(words: Sequence[str], settings: Settings) -> list[Classes]:
    """The classes of each worker: of the words, or of all sections of mesh.toml with a class, imported.

    The variables of the sections are set first; where two set the same one, the later section wins.
    """
    if words:
        return [load(words)]
    sections = {name: service for name, service in settings.services.items() if service.classes}
    for service in sections.values():
        os.environ.update(service.environment)
        if service.env_file:
            os.environ.update(read_env_file(settings.root / service.env_file))
    if not sections:
        return [load(settings.mesh.services)] if settings.mesh.services or not declared(settings) else []
    return [named(load(service.classes), name, settings) for name, service in sections.items()]


async def run(
    workers: Sequence[Classes],
    settings: Settings,
    *,
    fd: int,
    life: int,
    started: Callable[[Running], object],
    watchdog: Watchdog,
    programs: Sequence[str] = (),
) -> int:
    """Run everything until SIGTERM, or until the parent is gone; the exit code.

    Args:
        programs: the services that are programs.
        fd: the listening socket for HTTP.
        life: a pipe that ends when the parent does.
        started: called when everything is ready.

    Raises:
        Taken: another hub has the address.
        Exception: a service could not start; whatever it raised.
    """
    asyncio.get_running_loop().add_reader(life, _orphaned, life)
    access = Access.of(settings.access)
    transport = from_settings(settings, "hub")
    hub = Hub(
        transport,
        LoopClock(),
        identity=ids.instance_id("hub"),
        epoch=ids.epoch(),
        lease_s=settings.discovery.lease_s,
        # The workers of this process register at once: an unknown service is reported without waiting.
        learn_s=0.0,
        limits=Limits(record_bytes=settings.discovery.record_bytes),
        access=access,
    )
    store = Worker([Store], settings)
    services = [Worker(classes, settings) for classes in workers]
    others = DevPrograms(list(programs), settings)
    code = 0
    try:
        try:
            await listen(hub, settings.mesh.hubs)
        except AddressInUse as exc:
            raise Taken(
                f"another mesh runs in this project: {exc.message}", details={"hubs": settings.mesh.hubs}
            ) from exc
        code = await _serve(store, services, others, settings, fd, started, watchdog)
    finally:
        await others.stop()
        for worker in services:
            await worker.stop()
        await store.stop()
        await hub.stop()
        await transport.close()
        watchdog.stop()
    return code


async def _serve(
    store: Worker,
    services: list[Worker],
    programs: DevPrograms,
    settings: Settings,
    fd: int,
    started: Callable[[Running], object],
    watchdog: Watchdog,
) -> int:
    """Start everything but the hub, wait for the gateway's end, and drain the workers."""
    leaving: list[str] = []

    def leave(reason: str) -> None:
        leaving.append(reason)
        os.kill(os.getpid(), signal.SIGTERM)

    for service in store.services:
        if isinstance(service, Store):
            service.on_fatal = partial(leave, "the store")
    starting = asyncio.create_task(_start([store, *services], programs), name="mesh.dev.start")
    watchdog.attach((services or [store])[0].node.recorder, leave, starting)
    front = _Front(settings, fd)
    # The gateway has the signal handlers: the first signal ends it, and the workers follow.
    serving = asyncio.create_task(front.serve(), name="mesh.dev.gateway")
    telling = asyncio.create_task(_tell(starting, front, services, programs, started, watchdog), name="mesh.dev.ready")
    try:
        await asyncio.wait({serving, telling}, return_when=asyncio.FIRST_COMPLETED)
        if telling.done():
            telling.result()
        await serving
    finally:
        await _cancel(telling, starting, serving)
    await programs.stop()
    ready = [worker for worker in services if worker.stage is Stage.READY]
    finished = await asyncio.gather(*(worker.drain("stopping") for worker in ready))
    if store.stage is Stage.READY:
        await store.drain("stopping")
    for service in store.services:
        if isinstance(service, Store) and service.fatal is not None:
            raise service.fatal
    if "memory" in leaving:
        return EXIT_MEMORY
    return 0 if all(finished) else 1


async def _start(workers: Sequence[Worker], programs: DevPrograms) -> None:
    """Start all side by side, as they may need each other; when one fails, the others stop starting."""
    tasks = [asyncio.create_task(begin()) for begin in (*(worker.start for worker in workers), programs.start)]
    try:
        await asyncio.gather(*tasks)
    finally:
        await _cancel(*tasks)


async def _tell(
    starting: asyncio.Task[None],
    front: _Front,
    services: Sequence[Worker],
    programs: DevPrograms,
    started: Callable[[Running], object],
    watchdog: Watchdog,
) -> None:
    """Report once that everything is ready: the workers have started, and the gateway has heard of them."""
    await starting
    watchdog.enter("ready")
    address = await front.address
    ids = [each for worker in services for each in worker.instance_ids] + programs.instance_ids
    while any(front.knows(each) is None for each in ids):  # noqa: ASYNC110  # the registry arrives within milliseconds
        await asyncio.sleep(0.005)
    started(Running(address, [each for each in map(front.knows, ids) if each is not None]))


class _Front:
    """The gateway, and what it knows of the services."""

    def __init__(self, settings: Settings, fd: int) -> None:
        self.address: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._settings = settings
        self._fd = fd
        self._node: Node | None = None

    async def serve(self) -> None:
        """Serve HTTP until a signal arrives."""
        await app.serve(
            self._settings, fd=self._fd, connect=self._connect, started=self.address.set_result, alone=False
        )

    async def _connect(self, settings: Settings) -> tuple[Node, str]:
        node, endpoint = await app.connect_node(settings)
        assert isinstance(node, Node)
        self._node = node
        return node, endpoint

    def knows(self, instance: str) -> Instance | None:
        """The record of an instance, once the gateway has received it."""
        return self._node.table.get(instance) if self._node is not None else None


async def _cancel(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _orphaned(life: int) -> None:
    """The parent has ended without a word: nothing else would end this process."""
    asyncio.get_running_loop().remove_reader(life)
    os.kill(os.getpid(), signal.SIGTERM)


def own(fd: int, life: int) -> None:
    """Keep the inherited descriptors from the processes that services start."""
    for each in (fd, life):
        os.set_inheritable(each, False)
