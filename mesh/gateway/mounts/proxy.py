"""[gateway.proxy]: prefixes that are forwarded to other HTTP servers.

Owns: these mounts, from the settings.
Leaves to others: forwarding (gateway.forwarding), choosing a server (gateway.upstreams), its checks
(gateway.upstream_health).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, nullcontext
from typing import Final

from mesh.config.edge_proxy import ProxySettings
from mesh.discovery.record import EdgePolicy
from mesh.errors import Unavailable
from mesh.gateway.entry import Entry, is_protected
from mesh.gateway.forwarding import Forwarder
from mesh.gateway.front import Front
from mesh.gateway.mounts.contract import Answer, Mount
from mesh.gateway.ports import Node
from mesh.gateway.request import Request
from mesh.gateway.upstream_health import HealthChecks
from mesh.gateway.upstreams import Upstreams

#: `origin` of these mounts.
ORIGIN: Final = "gateway.proxy"


def mounts(front: Front) -> Iterator[Mount]:
    """The mounts of the settings."""
    for prefix, settings in front.settings.gateway.proxy.items():
        yield mount(front, prefix, settings)


def mount(front: Front, prefix: str, settings: ProxySettings) -> Mount:
    """The mount of one prefix."""
    upstreams = Upstreams(settings.to, settings, front.node.clock.now)
    forwarder = Forwarder(front, upstreams, settings, prefix)
    policy = EdgePolicy(auth=settings.auth, max_body_bytes=settings.max_body_bytes)
    entry = Entry(prefix, policy=policy)
    front.catalog.protected |= is_protected(policy)

    async def handle(request: Request) -> Answer:
        if prefix == "/" and not front.may_say_unknown():
            raise Unavailable("no hub has reported the declared routes yet")
        return await forwarder.forward(request)

    @asynccontextmanager
    async def lifespan(_: Node) -> AsyncIterator[None]:
        checks = (
            HealthChecks(upstreams, settings.health, settings.health_every_s, front.node.clock, prefix).running()
            if settings.health
            else nullcontext()
        )
        try:
            async with checks:
                yield
        finally:
            await upstreams.close()

    return Mount(prefix=prefix, handler=handle, methods=(), lifespan=lifespan, entry=lambda _: entry)
