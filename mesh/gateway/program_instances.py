"""The instances of a program that get requests from this gateway, kept in step with the registry.

Owns: which registered instances may get requests, and the proof that each is what its record says.
Leaves to others: the rule about addresses (discovery.http_address), the connections (upstreams), the routes
(mounts.programs).

A record alone proves nothing: any worker may write one. So the gateway calls each new instance once, at the endpoint of
its record, over the link that with keys is authenticated; the process there must confirm the address. Together with the
rule that the HTTP address is on the machine of the endpoint, a worker can make gateways send requests to no other
machine than the one on which it runs itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

from mesh.config import MeshSettings
from mesh.discovery.http_address import META, HttpAddress, read, usable
from mesh.discovery.record import Instance
from mesh.errors import MeshError
from mesh.gateway.ports import Change, Node
from mesh.gateway.upstreams import Upstreams
from mesh.telemetry.logs import get_logger

_log = get_logger("mesh.gateway")

#: A process that is ready answers in milliseconds; one that does not is asked again.
ANSWER_S: Final = 2.0
AGAIN_S: Final = 0.5
#: How long a request waits for the answer of the first instance.
PATIENCE_S: Final = 1.0
_LOOK_S: Final = 0.005

_Key = tuple[str, int]


class ProgramInstances:
    """The instances of one service.

    Args:
        service: its name.
        upstreams: gets their addresses.
    """

    def __init__(self, service: str, upstreams: Upstreams, mesh: MeshSettings) -> None:
        self._service = service
        self._upstreams = upstreams
        self._mesh = mesh
        self._changed = asyncio.Event()
        self._proved: set[_Key] = set()
        self._asking: dict[_Key, asyncio.Task[None]] = {}
        #: Instances that get no requests from here: each is logged once.
        self._told: set[_Key] = set()

    @asynccontextmanager
    async def followed(self, node: Node) -> AsyncIterator[None]:
        """Follow the registry."""
        node.agent.on_change(self._on_change)
        self._changed.set()
        task = asyncio.create_task(self._follow(node), name=f"mesh.programs.{self._service}")
        try:
            yield
        finally:
            tasks = [task, *self._asking.values()]
            for each in tasks:
                each.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._upstreams.close()

    async def awaited(self, node: Node) -> bool:
        """Whether some instance gets requests. Waits shortly while one is known that has not answered yet: the first
        requests of a gateway that has just started may come before the first answer."""
        until = node.clock.now() + PATIENCE_S
        while not self._upstreams.all and (self._changed.is_set() or self._asking) and node.clock.now() < until:
            await node.clock.sleep(_LOOK_S)
        return bool(self._upstreams.all)

    def _on_change(self, change: Change) -> None:
        if change.only_loads:
            return
        touched = (*change.joined, *change.updated, *(instance for instance, _ in change.left))
        if any(each.service == self._service for each in touched):
            self._changed.set()

    async def _follow(self, node: Node) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            await self._use(node)

    async def _use(self, node: Node) -> None:
        """Send requests to the instances that are registered now and have proved what they are."""
        found = {
            (each.id, each.epoch): (each, address)
            for each in node.table.instances(self._service)
            if (address := self._address(each)) is not None
        }
        self._proved &= found.keys()
        for key in self._asking.keys() - found.keys():
            self._asking.pop(key).cancel()
        for key in found.keys() - self._proved - self._asking.keys() - self._told:
            self._asking[key] = asyncio.create_task(self._ask(node, key, found[key][0]), name=f"mesh.proof.{key[0]}")
        await self._upstreams.replace(upstream(address) for key, (_, address) in found.items() if key in self._proved)
        registered = {(each.id, each.epoch) for each in node.table.instances(self._service)}
        self._told &= registered

    # --- proof ------------------------------------------------------------------------------------

    def _address(self, instance: Instance) -> HttpAddress | None:
        address = usable(instance, self._mesh.host, self._mesh.run_dir)
        if address is not None:
            return address
        told = instance.meta.get(META, "")
        named = read(told)
        if named is not None and named.on_loopback and instance.host != self._mesh.host:
            # The gateways of that host serve it.
            self._tell(instance, "program.elsewhere", remedy='for all hosts, set http = "{host}:{port}"')
        elif told:
            self._tell(instance, "program.address_refused", reason="the address is not on the machine of the worker")
        return None

    async def _ask(self, node: Node, key: _Key, instance: Instance) -> None:
        """Ask the process at the endpoint of an instance who it is, until it answers."""
        while True:
            try:
                told: Any = await node.call("$worker.info", timeout=ANSWER_S, instance=instance.id)
                break
            except MeshError as exc:
                _log.debug("program.unproved", service=self._service, instance=instance.id, error=exc.message)
                await node.clock.sleep(AGAIN_S)
        self._asking.pop(key, None)
        addresses = told.get("http") if isinstance(told, Mapping) else None
        if not isinstance(addresses, Mapping) or addresses.get(instance.id) != instance.meta[META]:
            reason = "the process at the endpoint has not registered this address"
            self._tell(instance, "program.address_refused", reason=reason)
            return
        self._proved.add(key)
        self._changed.set()

    def _tell(self, instance: Instance, event: str, **about: str) -> None:
        key = (instance.id, instance.epoch)
        if key in self._told:
            return
        self._told.add(key)
        log = _log.info if event == "program.elsewhere" else _log.warning
        log(
            event,
            service=self._service,
            instance=instance.id,
            host=instance.host,
            http=instance.meta.get(META, "")[:200],
            endpoint=instance.endpoint[:200],
            **about,
        )


def upstream(address: HttpAddress) -> str:
    """The address in the form of gateway.upstreams."""
    return f"http+unix:{address.socket}" if address.socket else address.text
