"""The routes of programs: prefixes whose requests go to the instances of a service with a `command`.

Owns: these mounts, from the settings; and which instances get requests, from the registry.
Leaves to others: running programs (worker.program), which addresses may be used (discovery.http_address), forwarding
(gateway.forwarding), choosing an instance (gateway.upstreams).

The prefixes come from this gateway's own mesh.toml, never from the registry: a worker that registers itself cannot add
one. What it can do, unless `[access] serve` keeps it from that, is to register as an instance of such a service; then
it gets requests, but only at the address of its own machine.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial

from mesh.config import ServiceSettings
from mesh.discovery.http_address import META, HttpAddress, read, usable
from mesh.discovery.record import EdgePolicy, Instance
from mesh.errors import Unavailable
from mesh.gateway.entry import Entry
from mesh.gateway.forwarding import Forwarder
from mesh.gateway.front import Front
from mesh.gateway.mounts.contract import Answer, Handler, Mount
from mesh.gateway.ports import Change, Node
from mesh.gateway.request import Request
from mesh.gateway.sites import Sites
from mesh.gateway.tunnel import is_websocket
from mesh.gateway.upstreams import Upstreams
from mesh.telemetry.logs import get_logger

_log = get_logger("mesh.gateway")


def mounts(front: Front) -> Iterator[tuple[str, Mount]]:
    """The mounts of the settings, each with its origin."""
    for name, service in front.settings.services.items():
        if service.command and service.route:
            yield from _Routes(front, name, service).mounts()


class _Routes:
    """The routes of one program.

    Args:
        name: of the service.
    """

    def __init__(self, front: Front, name: str, service: ServiceSettings) -> None:
        self._front = front
        self._name = name
        self._service = service
        self._upstreams = Upstreams((), service.forward, front.node.clock.now)
        self._sites = Sites(front.settings)
        self._changed = asyncio.Event()
        #: The instances that get no requests from here, so that each is logged once.
        self._unused: set[str] = set()

    def mounts(self) -> Iterator[tuple[str, Mount]]:
        """One for each prefix; the first one starts what all of them need."""
        for prefix in self._service.route:
            lifespan = self._lifespan if prefix == self._service.route[0] else None
            mount = Mount(
                prefix=prefix,
                handler=self._handler(prefix),
                methods=(),
                lifespan=lifespan,
                entry=partial(_entry, self._entry(prefix)),
            )
            yield f"services.{self._name}.route", mount

    def _entry(self, prefix: str) -> Entry:
        forward = self._service.forward
        return Entry(prefix, policy=EdgePolicy(auth=forward.auth, max_body_bytes=forward.max_body_bytes))

    def _handler(self, prefix: str) -> Handler:
        forwarder = Forwarder(self._front, self._upstreams, self._service.forward, prefix)

        async def handle(request: Request) -> Answer:
            if is_websocket(request.raw):
                # A browser opens WebSockets to any host, with its cookies, and without asking first.
                self._sites.check_origin(request.raw)
            if not self._upstreams.all:
                raise Unavailable(
                    f"no healthy instance of {self._name} is registered",
                    details={"service": self._name, "retry_after_s": 1},
                )
            return await forwarder.forward(request)

        return handle

    # --- instances --------------------------------------------------------------------------------

    @asynccontextmanager
    async def _lifespan(self, node: Node) -> AsyncIterator[None]:
        node.agent.on_change(self._on_change)
        await self._use(node)
        task = asyncio.create_task(self._follow(node), name=f"mesh.programs.{self._name}")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await self._upstreams.close()

    def _on_change(self, change: Change) -> None:
        if change.only_loads:
            return
        touched = (*change.joined, *change.updated, *(instance for instance, _ in change.left))
        if any(each.service == self._name for each in touched):
            self._changed.set()

    async def _follow(self, node: Node) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            await self._use(node)

    async def _use(self, node: Node) -> None:
        """Send requests to the instances that are registered now."""
        instances = node.table.instances(self._name)
        addresses = [address for each in instances if (address := self._address(each)) is not None]
        self._unused &= {each.id for each in instances}
        await self._upstreams.replace(map(_upstream, addresses))

    def _address(self, instance: Instance) -> HttpAddress | None:
        mesh = self._front.settings.mesh
        address = usable(instance, mesh.host, mesh.run_dir)
        told = instance.meta.get(META, "")
        if address is None and told and instance.id not in self._unused:
            self._unused.add(instance.id)
            about = {"service": self._name, "instance": instance.id, "host": instance.host, "http": told[:200]}
            named = read(told)
            if named is not None and named.on_loopback and instance.host != mesh.host:
                # The gateways of that host serve it.
                _log.info("program.elsewhere", **about, remedy='for all hosts, set http = "{host}:{port}"')
            else:
                reason = f"the address is not on the machine of the worker, which is at {instance.endpoint[:200]}"
                _log.warning("program.address_refused", **about, reason=reason)
        return address


def _entry(entry: Entry, _: Request) -> Entry:
    return entry


def _upstream(address: HttpAddress) -> str:
    """The address in the form of gateway.upstreams."""
    return f"http+unix:{address.socket}" if address.socket else address.text
