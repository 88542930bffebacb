"""The routes of programs: prefixes for requests that go to the instances of a service with a `command`.

Owns: these mounts, from the settings.
Leaves to others: running programs (worker.program), which instances get requests (gateway.program_instances),
forwarding (gateway.forwarding), choosing an instance (gateway.upstreams).

The prefixes come from this gateway's own mesh.toml, never from the registry: a worker that registers itself cannot add
one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from mesh.config import ServiceSettings
from mesh.discovery.record import EdgePolicy
from mesh.errors import Unavailable
from mesh.gateway.entry import Entry, is_protected
from mesh.gateway.forwarding import Forwarder
from mesh.gateway.front import Front
from mesh.gateway.mounts.contract import Answer, Mount
from mesh.gateway.program_instances import ProgramInstances
from mesh.gateway.request import Request
from mesh.gateway.upstreams import Upstreams


def mounts(front: Front) -> Iterator[tuple[str, Mount]]:
    """The mounts of the settings, each with the key that declares it."""
    for name, service in front.settings.services.items():
        if not service.command or not service.route:
            continue
        upstreams = Upstreams((), service.forward, front.node.clock.now)
        instances = ProgramInstances(name, upstreams, front.settings.mesh)
        for prefix in service.route:
            mount = _mount(front, name, service, prefix, upstreams, instances)
            if prefix == service.route[0]:
                # The first one starts what all of them need.
                mount = replace(mount, lifespan=instances.followed)
            yield f"services.{name}.route", mount


def _mount(
    front: Front,
    name: str,
    service: ServiceSettings,
    prefix: str,
    upstreams: Upstreams,
    instances: ProgramInstances,
) -> Mount:
    forward = service.forward
    forwarder = Forwarder(front, upstreams, forward, prefix)
    entry = Entry(prefix, policy=EdgePolicy(auth=forward.auth, max_body_bytes=forward.max_body_bytes))
    front.catalog.protected |= is_protected(entry.policy)

    async def handle(request: Request) -> Answer:
        if not upstreams.all and not await instances.awaited(front.node):
            raise Unavailable(
                f"no healthy instance of {name} is registered", details={"service": name, "retry_after_s": 1}
            )
        return await forwarder.forward(request)

    return Mount(prefix=prefix, handler=handle, methods=(), entry=lambda _: entry)
