"""Finds HTTP routes that two services declare: only one of them can answer.

The gateways decide which one (gateway.routes). This module finds the conflicts in the registry, for the log of the
services themselves and for `mesh doctor`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

from mesh.discovery.record import Instance
from mesh.discovery.table import Change
from mesh.telemetry.logs import get_logger

log = get_logger("mesh.discovery")

_PARAMETER = re.compile(r"\{\w*")


class RouteConflict(NamedTuple):
    """One route, and the services that declare it, sorted.

    Attributes:
        path: as the first service declares it; the names of parameters do not distinguish routes.
    """

    verb: str
    path: str
    services: tuple[str, ...]


def route_conflicts(instances: Iterable[Instance]) -> list[RouteConflict]:
    """The routes that more than one service declares, sorted."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for instance in instances:
        for route in instance.routes:
            # "/a/{id}" and "/a/{name}" are one route, "/a/{id}" and "/a/{rest...}" are two.
            key = (route.verb, _PARAMETER.sub("{", route.path))
            found.setdefault(key, {}).setdefault(instance.service, route.path)
    return [
        RouteConflict(verb, paths[min(paths)], tuple(sorted(paths)))
        for (verb, _), paths in sorted(found.items())
        if len(paths) > 1
    ]


class ConflictLog:
    """Logs each conflict of a worker's own services once, in that worker.

    Args:
        services: the services that the worker runs.
        instances: returns all instances in the registry.
    """

    def __init__(self, services: Collection[str], instances: Callable[[], Iterable[Instance]]) -> None:
        self._services = frozenset(services)
        self._instances = instances
        self._logged: set[RouteConflict] = set()

    def on_change(self, change: Change) -> None:
        """Check again when an instance with routes is new or changed; to be called by the agent."""
        if change.only_loads or not any(each.routes for each in (*change.joined, *change.updated)):
            return
        for conflict in route_conflicts(self._instances()):
            if conflict not in self._logged and self._services.intersection(conflict.services):
                self._logged.add(conflict)
                log.warning(
                    "route.duplicated",
                    verb=conflict.verb,
                    path=conflict.path,
                    services=list(conflict.services),
                    remedy="give one of them another path",
                )
