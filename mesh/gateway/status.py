"""/mesh: the running services and their instances, as one JSON document.

Owns: its form. For people and scripts; Prometheus uses /metrics.
Leaves to others: the instances (discovery.table), the offers of services (catalog).
"""

from __future__ import annotations

import os
from typing import Any

import msgspec

from mesh.discovery.record import Instance
from mesh.gateway.catalog import Catalog
from mesh.gateway.health import Health
from mesh.gateway.ports import Node


def status(node: Node, catalog: Catalog, health: Health, *, mesh: str, host: str, started_at: float) -> dict[str, Any]:
    """The document, of plain values.

    Args:
        mesh: the mesh's name.
        host: this machine's name in the registry.
        started_at: by the wall clock.
    """
    routes = catalog.routes
    by_service: dict[str, list[dict[str, str]]] = {}
    for route in routes.routes:
        by_service.setdefault(route.service, []).append(
            {"verb": route.record.verb, "path": route.record.path, "method": route.record.method}
        )
    living = set(node.table.services())
    return {
        "mesh": mesh,
        "gateway": {
            "id": node.identity,
            "host": host,
            "pid": os.getpid(),
            "started_at": round(started_at, 3),
            "uptime_s": round(node.clock.wall() - started_at, 3),
            "ready": health.ready,
            "draining": health.draining,
        },
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
