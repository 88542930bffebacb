"""The routes, methods and tasks of all services, kept in step with the registry.

Owns: choosing the record when the instances of a service differ, remembering services without instances, and
rebuilding routes, at most once per request and only when an offer has changed.
Leaves to others: the trie (routes), the registry (discovery.table).

A service without instances keeps its routes: a restart is more likely than a removal, and its requests should wait for
it instead of failing with 404. Another service that declares the same address then takes precedence.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar

from mesh.config.settings import RpcMode
from mesh.discovery.record import EdgePolicy, Instance, MethodRecord, RouteRecord, TaskRecord
from mesh.discovery.share import declaring
from mesh.errors import UnknownMethod, UnknownService
from mesh.gateway.binding import RpcBinding
from mesh.gateway.entry import is_protected
from mesh.gateway.ports import Change, Table
from mesh.gateway.routes import Conflict, Reserved, Routes
from mesh.suggest import suggestion
from mesh.telemetry.logs import get_logger

_log = get_logger(__name__)

#: Prefix of the framework's own services (mesh.store), which are not reachable over HTTP.
OWN: Final = "mesh-"


R = TypeVar("R", MethodRecord, TaskRecord)


class Offer(NamedTuple):
    """The routes, methods and tasks of one service: the union over its instances; the latest epoch takes precedence."""

    doc: str
    version: str
    methods: Mapping[str, MethodRecord]
    routes: tuple[tuple[RouteRecord, MethodRecord], ...]
    tasks: Mapping[str, TaskRecord] = {}


def offer_of(instances: Sequence[Instance]) -> Offer:
    """The offer of one or more instances of a service. During a roll it contains those of the old and new instances."""
    # The id decides between equal epochs, so that all gateways decide alike.
    ordered = sorted(instances, key=lambda instance: (instance.epoch, instance.id))
    methods: dict[str, MethodRecord] = {}
    routes: dict[tuple[str, str, bool], RouteRecord] = {}
    tasks: dict[str, TaskRecord] = {}
    seen: Instance | None = None
    for instance in ordered:
        # Instances of one release have equal records: read them once.
        if seen is None or (instance.routes, instance.methods, instance.tasks) != (
            seen.routes,
            seen.methods,
            seen.tasks,
        ):
            methods.update(instance.methods)
            tasks.update(instance.tasks)
            for record in instance.routes:
                method = instance.methods.get(record.method)
                routes[record.verb, record.path, method is not None and method.stream] = record
            seen = instance
    latest = ordered[-1]
    declared = tuple(
        (record, methods[record.method]) for _, record in sorted(routes.items()) if record.method in methods
    )
    return Offer(latest.doc, latest.version, methods, declared, tasks)


def _is_protected(offer: Offer) -> bool:
    """Whether a route, method or task of an offer requires a caller."""
    policies = [route.edge for route, _ in offer.routes]
    policies += [record.edge for record in offer.methods.values()]
    policies += [record.edge for record in offer.tasks.values()]
    return any(map(is_protected, policies))


class Target(NamedTuple):
    """A method as `/rpc` calls it; fields with the same name as in Route have the same meaning."""

    service: str
    name: str
    target: str
    method: MethodRecord
    binding: RpcBinding
    status: int = 200
    produces: str = ""
    #: None: as the method declares it; the node knows.
    idempotent: bool | None = None

    @property
    def max_body_bytes(self) -> int:
        """As of a Route."""
        return self.method.edge.max_body_bytes if self.method.edge is not None else 0


class Catalog:
    """The offers of all services that this gateway has ever known."""

    def __init__(self, table: Table, mode: RpcMode = "exposed") -> None:
        """Args:
        mode: which methods and tasks can be reached by name: the exposed ones, all, or none ("off").
        """
        self._table = table
        self._mode = mode
        self._advised: set[str] = set()
        self.offers: dict[str, Offer] = {}
        #: Whether some service has declared a route, method or task that requires a caller. A mount that has such
        #: policies from elsewhere sets it, too: then a gateway without authentication refuses them.
        self.protected = False
        #: Grows with every change of an offer; used to invalidate data derived from the offers.
        self.version = 0
        self._routes = Routes({})
        self._reserved: tuple[Reserved, ...] = ()
        self._stale = False
        self._targets: dict[str, Target] = {}
        self._warned: set[Conflict] = set()
        for service in table.services():
            self._learn(service)

    def reserve(self, reserved: Iterable[Reserved]) -> None:
        """Keep addresses for mounts: declared routes there become conflicts."""
        self._reserved = tuple(reserved)
        self._stale = True

    def on_change(self, change: Change | Any) -> None:
        """Follow the table: to be called by the agent."""
        if change.only_loads:
            return
        services = {instance.service for instance in (*change.joined, *change.updated)}
        services.update(instance.service for instance, _ in change.left)
        for service in services:
            self._learn(service)

    def _learn(self, service: str) -> None:
        if service.startswith(OWN):
            return
        instances = declaring(self._table.instances(service))
        before = self.offers.get(service)
        if not instances:
            # Keep the offer; but conflicts depend on whether the service has instances.
            self._stale = self._stale or before is not None
            return
        offer = offer_of(instances)
        if offer == before:
            self._stale = self._stale or bool(self._routes.conflicts)
            return
        self.offers[service] = offer
        self.protected = self.protected or _is_protected(offer)
        prefix = f"{service}."
        for target in [name for name in self._targets if name.startswith(prefix)]:
            del self._targets[target]
        self.version += 1
        self._stale = True

    def topics(self) -> Iterator[str]:
        """The topics that routes of WebSockets may send to clients."""
        for offer in self.offers.values():
            for route, _ in offer.routes:
                yield from route.topics

    def policies(self) -> Iterator[EdgePolicy]:
        """What the routes, methods and tasks of all services ask of gateways, as far as they ask for anything."""
        for offer in self.offers.values():
            found = [route.edge for route, _ in offer.routes]
            found += [method.edge for method in offer.methods.values()]
            found += [task.edge for task in offer.tasks.values()]
            yield from (policy for policy in found if policy is not None)

    @property
    def routes(self) -> Routes:
        """The current routes."""
        if self._stale:
            self._rebuild()
        return self._routes

    def _rebuild(self) -> None:
        self._stale = False
        self._routes = Routes(
            {service: offer.routes for service, offer in self.offers.items()},
            living=self._table.services(),
            reserved=self._reserved,
        )
        for conflict in self._routes.conflicts:
            if conflict not in self._warned:
                self._warned.add(conflict)
                _log.warning("route.not_served", conflict=str(conflict))

    def methods(self, service: str) -> dict[str, MethodRecord]:
        """The methods of a service that /rpc reaches."""
        offer = self.offers.get(service)
        return {} if offer is None else self._reached(offer.methods)

    def tasks(self, service: str) -> dict[str, TaskRecord]:
        """The tasks of a service that /tasks reaches."""
        offer = self.offers.get(service)
        return {} if offer is None else self._reached(offer.tasks)

    def _reached(self, records: Mapping[str, R]) -> dict[str, R]:
        if self._mode == "off":
            return {}
        return {name: record for name, record in records.items() if record.exposed or self._mode == "all"}

    def target(self, service: str, method: str) -> Target:
        """A method to be called by name. An unreachable method gives the same error as one that does not exist.

        Raises:
            UnknownService: no service with a reachable method has this name.
            UnknownMethod: none of its instances has such a method, or the method is not reachable.
        """
        name = f"{service}.{method}"
        target = self._targets.get(name)
        if target is None:
            record = self._find("method", service, method, self.methods)
            target = self._targets[name] = Target(service, method, name, record, RpcBinding(record))
        return target

    def task(self, service: str, task: str) -> TaskRecord:
        """A task to be deferred by name; see `target`.

        Raises:
            UnknownService, UnknownMethod: as for a method.
        """
        return self._find("task", service, task, self.tasks)

    def _find(self, kind: str, service: str, name: str, reached: Callable[[str], dict[str, R]]) -> R:
        known = reached(service)
        record = known.get(name)
        if record is not None:
            return record
        self._advise(kind, service, name)
        if not known:
            others = [each for each in self.offers if reached(each)]
            raise UnknownService(f"no service is named {_quoted(service)}{_nearest(service, others)}")
        raise UnknownMethod(f"{service} has no {kind} {_quoted(name)}{_nearest(name, known)}")

    def _advise(self, kind: str, service: str, name: str) -> None:
        """Log, once per name, that a name exists and is not exposed. The client does not learn it."""
        offer = self.offers.get(service)
        target = f"{service}.{name}"
        if offer is None or target in self._advised or name not in (offer.methods if kind == "method" else offer.tasks):
            return
        self._advised.add(target)
        decorator = "@rpc(expose=True)" if kind == "method" else "@task(expose=True)"
        _log.warning(
            "target.not_exposed",
            kind=kind,
            target=target,
            remedy=f'declare it with {decorator}, or set gateway.rpc = "all" for development',
            mode=self._mode,
        )


def _quoted(name: str) -> str:
    return f'"{name}"' if len(name) <= 64 else f'"{name[:64]}…"'


def _nearest(name: str, known: Collection[str]) -> str:
    return suggestion(name, known, f"known are {', '.join(sorted(known)[:20])}" if known else "")
