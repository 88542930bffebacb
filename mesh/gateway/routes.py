"""Maps HTTP addresses to methods.

Owns: merging the routes of all services into one trie of path segments, resolving conflicts, and parsing a path. Pure:
instances in, routes out.
Leaves to others: when to rebuild the trie (catalog), converting a request to arguments (binding).

A literal segment takes precedence over a parameter, and a parameter over a rest; when the best match lacks the verb,
the next one is tried. A path that matches only for other verbs is a 405.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from mesh.discovery.record import MethodRecord, RouteRecord
from mesh.errors import MethodNotAllowed, UnknownRoute
from mesh.gateway.binding import Binding
from mesh.gateway.paths import decode_segment, is_unsafe, may_climb, unsafe

#: In the order in which an Allow header names them.
VERBS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


class Reserved(NamedTuple):
    """Addresses that a mount answers; a service's route there is never used.

    Attributes:
        holder: who answers, for messages.
        exact: only the prefix itself is reserved.
    """

    prefix: str
    holder: str
    exact: bool = False

    def covers(self, steps: list[str]) -> bool:
        """Whether a route with these segments is reserved."""
        mine = segments(self.prefix)
        return steps == mine if self.exact else steps[: len(mine)] == mine


class Route:
    """One HTTP address, ready to be served."""

    __slots__ = (
        "binding",
        "idempotent",
        "max_body_bytes",
        "method",
        "name",
        "prefix",
        "produces",
        "raw",
        "record",
        "service",
        "status",
        "stream",
        "target",
    )

    def __init__(self, service: str, record: RouteRecord, method: MethodRecord) -> None:
        self.service = service
        self.name = record.method
        self.target = f"{service}.{record.method}"
        self.record = record
        self.method = method
        # Validate both: they become part of the head of an answer, and the record came from a worker.
        self.status = record.status if 200 <= record.status <= 299 else 200
        self.produces = record.produces if _MEDIA_TYPE.fullmatch(record.produces) else ""
        self.binding = Binding(record, method)
        #: The largest request body; 0 takes the gateway's.
        self.max_body_bytes = record.edge.max_body_bytes if record.edge is not None else 0
        #: The request goes on as a whole, to an application below `prefix`.
        self.raw = record.raw
        self.prefix = record.path.removesuffix("/{path...}").rstrip("/")
        # A GET changes nothing, so it may be retried at another instance when an answer is lost.
        self.idempotent = True if record.verb == "GET" else None
        #: The service's stream on the same address, for clients that accept Server-Sent Events or NDJSON by name.
        self.stream: Route | None = None

    def __repr__(self) -> str:
        return f"<Route {self.record.verb} {self.record.path} → {self.target}>"


@dataclass(frozen=True, slots=True)
class Conflict:
    """Two services, or a service and a mount, claim one address; `winner` serves it."""

    verb: str
    path: str
    winner: str
    loser: str

    def __str__(self) -> str:
        return (
            f"{self.verb} {self.path}: declared by {self.loser}, but served by {self.winner}; "
            f"give one of them another path"
        )


_MEDIA_TYPE: Final = re.compile(r"[\w.+-]+/[\w.+-]+(?:[ \t]*;[ -~]+)?", re.ASCII)

LITERAL: Final = 0
PARAMETER: Final = 1
REST: Final = 2


def segments(path: str) -> list[str]:
    """The segments of a declared path; `/` has one, which is empty."""
    return path.lstrip("/").split("/")


def segment_kind(segment: str) -> tuple[int, str]:
    """(LITERAL, text), (PARAMETER, name) or (REST, name) of one declared segment."""
    if len(segment) > 2 and segment[0] == "{" and segment[-1] == "}":
        name = segment[1:-1]
        return (REST, name[:-3]) if name.endswith("...") else (PARAMETER, name)
    return LITERAL, segment


def shape(path: str) -> str:
    """A declared path without the names of its parameters: two routes with the same shape conflict."""
    marks = {PARAMETER: "{}", REST: "{...}"}
    return "/" + "/".join(marks.get(kind, text) for kind, text in map(segment_kind, segments(path)))


@dataclass(slots=True)
class _Step:
    literals: dict[str, _Step] = field(default_factory=dict)
    parameter: _Step | None = None
    routes: dict[str, Route] = field(default_factory=dict)
    rests: dict[str, Route] = field(default_factory=dict)


#: What one service declares: its routes with the method behind each.
Declared = Iterable[tuple[RouteRecord, MethodRecord]]


class Routes:
    """Every address of every service. Immutable once built."""

    def __init__(
        self,
        declared: Mapping[str, Declared],
        living: Iterable[str] | None = None,
        reserved: Iterable[Reserved] = (),
    ) -> None:
        """Compile what the services declare.

        Args:
            declared: routes by service.
            living: services that have instances now; they take precedence over remembered services without instances.
                Otherwise the name that sorts first wins, so that all gateways decide alike, in whatever order they
                learned the routes.
            reserved: what mounts answer.
        """
        self._reserved = tuple(reserved)
        self._root = _Step()
        self.conflicts: list[Conflict] = []
        self.routes: list[Route] = []
        alive = set(declared) if living is None else set(living)
        for service in sorted(declared, key=lambda name: (name not in alive, name)):
            for record, method in sorted(declared[service], key=lambda pair: (pair[0].path, pair[0].verb)):
                self._add(service, record, method)

    def _add(self, service: str, record: RouteRecord, method: MethodRecord) -> None:
        steps = segments(record.path)
        for each in self._reserved:
            if each.covers(steps):
                self.conflicts.append(Conflict(record.verb, record.path, each.holder, service))
                return
        at = self._root
        where = at.routes
        for step in steps:
            kind, text = segment_kind(step)
            if kind == LITERAL:
                at = at.literals.setdefault(text, _Step())
            elif kind == PARAMETER:
                if at.parameter is None:
                    at.parameter = _Step()
                at = at.parameter
            else:
                where = at.rests
                break
            where = at.routes
        holder = where.get(record.verb)
        if holder is not None and holder.service == service and holder.method.stream != method.stream:
            self._pair(where, holder, Route(service, record, method))
            return
        if holder is not None:
            self.conflicts.append(Conflict(record.verb, record.path, holder.service, service))
            return
        route = Route(service, record, method)
        where[record.verb] = route
        self.routes.append(route)

    def _pair(self, where: dict[str, Route], one: Route, other: Route) -> None:
        """Combine a call and a stream on one address, such as a snapshot and its updates."""
        call, stream = (other, one) if one.method.stream else (one, other)
        call.stream = stream
        where[call.record.verb] = call
        self.routes.append(other)

    def find(self, verb: str, path: str) -> tuple[Route, list[str]]:
        """The route of a request and the values of its path parameters, in order.

        Args:
            verb: as received; HEAD finds the GET route when no service declares HEAD.
            path: the raw path, without its query, still percent-encoded.

        Raises:
            UnknownRoute: no service declares the path.
            MethodNotAllowed: the path is declared only for other verbs, which `details["allow"]` lists.
            BadRequest: a segment is not UTF-8 once decoded, or a parameter's value is unsafe as a file name.
        """
        parts = _parts(path)
        values: list[str] = []
        route = self._straight(parts, verb, values)
        if route is None:
            values.clear()
            route = self._walk(self._root, parts, 0, verb, values)
        if route is None and verb == "HEAD":
            route = self._walk(self._root, parts, 0, "GET", values)
        if route is not None:
            if values and may_climb(path):
                _check_values(route, values)
            return route, values
        allowed = self._allowed(self._root, parts, 0)
        if allowed:
            raise MethodNotAllowed(f"{verb} {path}: not allowed here", details={"allow": allow_header(allowed)})
        raise UnknownRoute(f"{path}: no service declares this path; GET /mesh lists those that exist")

    def has(self, verb: str, path: str) -> bool:
        """Whether a path is declared for a verb."""
        return verb in self._allowed(self._root, _parts(path), 0)

    def allow(self, path: str) -> str:
        """The Allow header of a path, for OPTIONS. Raises UnknownRoute."""
        allowed = self._allowed(self._root, _parts(path), 0)
        if not allowed:
            raise UnknownRoute(f"{path}: no service declares this path; GET /mesh lists those that exist")
        return allow_header(allowed)

    def _straight(self, parts: list[str], verb: str, values: list[str]) -> Route | None:
        """Fast path without backtracking: the route when each segment has only one candidate, as nearly always."""
        at = self._root
        for part in parts:
            if at.rests:
                return None
            step = at.literals.get(part)
            if at.parameter is not None:
                if step is not None or not part:
                    return None
                values.append(part)
                step = at.parameter
            if step is None:
                return None
            at = step
        return at.routes.get(verb)

    def _walk(self, at: _Step, parts: list[str], index: int, verb: str, values: list[str]) -> Route | None:
        if index == len(parts):
            return at.routes.get(verb)
        part = parts[index]
        step = at.literals.get(part)
        if step is not None:
            found = self._walk(step, parts, index + 1, verb, values)
            if found is not None:
                return found
        step = at.parameter
        if step is not None and part:
            values.append(part)
            found = self._walk(step, parts, index + 1, verb, values)
            if found is not None:
                return found
            values.pop()
        if at.rests:
            found = at.rests.get(verb)
            if found is not None:
                values.append("/".join(parts[index:]))
                return found
        return None

    def _allowed(self, at: _Step, parts: list[str], index: int) -> set[str]:
        if index == len(parts):
            return set(at.routes)
        allowed = set(at.rests)
        step = at.literals.get(parts[index])
        if step is not None:
            allowed |= self._allowed(step, parts, index + 1)
        if at.parameter is not None and parts[index]:
            allowed |= self._allowed(at.parameter, parts, index + 1)
        return allowed


def _check_values(route: Route, values: list[str]) -> None:
    """Reject values of path parameters that would escape the directory to which a handler joins them.

    A `{name}` is one segment: it contains no slash, not even encoded as %2F, and is neither `.` nor `..`. A
    `{rest...}` consists of such segments, separated by single slashes; as a whole it may be empty. Backslashes and NUL
    are rejected in both. Text with such characters belongs in the query or the body.

    Raises:
        BadRequest: a value is unsafe.
    """
    rest = route.record.path.endswith("...}")
    for index, value in enumerate(values):
        steps = value.split("/") if rest and index == len(values) - 1 and value else (value,)
        if value and any(is_unsafe(step) for step in steps):
            raise unsafe(value)


def _parts(path: str) -> list[str]:
    parts = path[1:].split("/")
    # Split before decoding: an encoded slash is part of its segment.
    return parts if path.isascii() and "%" not in path else [decode_segment(part) for part in parts]


def allow_header(verbs: Iterable[str]) -> str:
    """`GET, HEAD, OPTIONS` for {"GET"}."""
    every = set(verbs) | {"OPTIONS"}
    if "GET" in every:
        every.add("HEAD")
    return ", ".join(verb for verb in VERBS if verb in every)
