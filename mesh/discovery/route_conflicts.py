"""HTTP addresses that two services declare: only one of them can answer.

The gateways decide which (gateway.routes); this finds them in what the registry says, for the services themselves and
for `mesh doctor`.
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
    """One address, and the services that declare it, sorted.

    Attributes:
        path: as the first of the services declares it; names of parameters make no difference.
    """

    verb: str
    path: str
    services: tuple[str, ...]


def route_conflicts(instances: Iterable[Instance]) -> list[RouteConflict]:
    """The addresses that more than one service declares, in order."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for instance in instances:
        for route in instance.routes:
            # "/a/{id}" and "/a/{name}" are one address, "/a/{id}" and "/a/{rest...}" are two.
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
        services: those that the worker runs.
        instances: everything that the registry knows now.
    """

    def __init__(self, services: Collection[str], instances: Callable[[], Iterable[Instance]]) -> None:
        self._services = frozenset(services)
        self._instances = instances
        self._logged: set[RouteConflict] = set()

    def on_change(self, change: Change) -> None:
        """Look again when an instance with routes has come or changed; to be called by the agent."""
        if change.only_loads or not any(each.routes for each in (*change.joined, *change.updated)):
            return
        for conflict in route_conflicts(self._instances()):
            if conflict not in self._logged and self._services.intersection(conflict.services):
                self._logged.add(conflict)
                log.warning(
                    "route declared twice",
                    verb=conflict.verb,
                    path=conflict.path,
                    services=list(conflict.services),
                    remedy="give one of them another path",
                )
