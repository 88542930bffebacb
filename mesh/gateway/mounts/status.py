"""/mesh: the running services and their instances, as one JSON document.

Owns: its form. For people and scripts; Prometheus uses /metrics.
Leaves to others: the instances (discovery.table), the offers of services (catalog).
"""

from __future__ import annotations

import os
from typing import Any

import msgspec

from mesh.discovery.record import Instance
from mesh.gateway.front import Front
from mesh.gateway.media import JSON_TYPE
from mesh.gateway.mounts.contract import Mount
from mesh.gateway.reply import Reply
from mesh.gateway.request import Request


def mount(front: Front) -> Mount:
    """/mesh."""

    async def show(_: Request) -> Reply:
        return Reply(msgspec.json.format(msgspec.json.encode(status(front)), indent=2) + b"\n", JSON_TYPE)

    return Mount(prefix="/mesh", handler=show, exact=True)


def status(front: Front) -> dict[str, Any]:
    """The document, of plain values."""
    node, catalog, health = front.node, front.catalog, front.health
    routes = catalog.routes
    by_service: dict[str, list[dict[str, str]]] = {}
    for route in routes.routes:
        by_service.setdefault(route.service, []).append(
            {"verb": route.record.verb, "path": route.record.path, "method": route.record.method}
        )
    living = set(node.table.services())
    return {
        "mesh": front.settings.mesh.name,
        "gateway": {
            "id": node.identity,
            "host": front.settings.mesh.host,
            "pid": os.getpid(),
            "started_at": round(front.started_at, 3),
            "uptime_s": round(node.clock.wall() - front.started_at, 3),
            "ready": health.ready,
            "draining": health.draining,
        },
        "mounts": [{"prefix": each.prefix, "from": each.origin} for each in front.mounts],
        "edge": [
            {"name": each.name, **(each.facts or {})} for each in front.concerns if each.wanted is None or each.wanted()
        ],
        "hubs": [msgspec.to_builtins(_plain(hub)) for hub in node.agent.hubs_status()],
        "services": [
            {
                "name": service,
                "doc": offer.doc if (offer := catalog.offers.get(service)) else "",
                "methods": sorted(catalog.methods(service)),
                "routes": by_service.get(service, []),
                "instances": [_instance(each) for each in node.table.instances(service)],
            }
            for service in sorted(living | set(catalog.offers))
        ],
        "conflicts": [
            {"verb": each.verb, "path": each.path, "served_by": each.winner, "ignored": each.loser}
            for each in routes.conflicts
        ],
    }


def _instance(instance: Instance) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "id": instance.id,
        "worker": instance.worker,
        "host": instance.host,
        "pid": instance.pid,
        "version": instance.version,
        "endpoint": instance.endpoint,
        "started_at": instance.epoch / 1000,
        "load": round(instance.load, 4),
    }
    if instance.meta:
        shown["meta"] = instance.meta
    return shown


def _plain(hub: Any) -> Any:
    # A NamedTuple would become an array; readers need its field names.
    return hub._asdict() if hasattr(hub, "_asdict") else hub
