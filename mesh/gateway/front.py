"""What one gateway shares with its mounts.

Owns: this record. Leaves to others: its parts; the order of the steps of a request (server).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from mesh.config import Settings
from mesh.gateway.body import Bodies
from mesh.gateway.catalog import Catalog
from mesh.gateway.clients import Clients
from mesh.gateway.connections import Connections
from mesh.gateway.entry import Entry
from mesh.gateway.health import Health
from mesh.gateway.limits import exceeded
from mesh.gateway.ports import Node
from mesh.gateway.problems import Problems
from mesh.gateway.request import RawRequest, Request
from mesh.gateway.sites import Sites
from mesh.gateway.websocket.rooms import Rooms


class Concern(Protocol):
    """One concern of the edge; see mesh.gateway.edge.contract."""

    @property
    def name(self) -> str: ...
    @property
    def hook(self) -> Any: ...
    @property
    def lifespan(self) -> Any: ...
    @property
    def openapi(self) -> Any: ...
    @property
    def facts(self) -> dict[str, Any] | None: ...
    @property
    def wanted(self) -> Any: ...


class SessionAnswers(Protocol):
    """Begins and ends login sessions; see mesh.gateway.edge.auth.sessions.answers."""

    async def apply(self, request: Request, target: str, meta: Mapping[str, str], reply: Any, /) -> None: ...


class Mounted(Protocol):
    """One mount in the table; see mesh.gateway.mounts.registry."""

    prefix: str
    origin: str
    mount: Any
    serve: Any


class Table(Protocol):
    """The table of mounts."""

    def __iter__(self) -> Iterator[Mounted]: ...
    def entry(self, request: Request) -> Entry: ...
    async def methods(self, request: Request) -> tuple[str, ...]: ...


class Front:
    """The parts of one gateway.

    Attributes:
        timeout_s: `gateway.timeout`, the deadline of a request without X-Request-Timeout.
        started_at: by the wall clock.
        mounts: the table of mounts, once it is built.
        concerns: of the edge, the outermost first.
        fallback: answers the paths of no mount and no declared route; None leaves them unknown.
        sessions: begins and ends login sessions when handlers ask for it; None without [auth.sessions].
    """

    mounts: Table
    sessions: SessionAnswers | None = None

    def __init__(self, node: Node, settings: Settings) -> None:
        limits = settings.gateway
        self.node = node
        self.settings = settings
        self.timeout_s = limits.timeout_s
        self.started_at = node.clock.wall()
        self.catalog = Catalog(node.table, limits.rpc)
        self.health = Health(node.agent, settings.mesh.run_dir)
        self.connections = Connections()
        self.problems = Problems(debug=limits.debug)
        self.clients = Clients(limits.proxies, limits.forwarded, behind=limits.unix is not None)
        self.sites = Sites(settings)
        self.bodies = Bodies(
            limits.max_body_bytes,
            limits.max_body_total_bytes,
            limits.min_body_rate_bytes,
            limits.max_inflation,
            partial(exceeded, node.recorder),
        )
        self.concerns: Sequence[Concern] = ()
        self.rooms = Rooms(node)
        #: Open WebSockets.
        self.sockets: set[Any] = set()
        #: Applications that have sent their responses and go on.
        self.endings: set[asyncio.Task[None]] = set()
        self.fallback: Mounted | None = None
        #: How many requests a connection may send; 0 means any number.
        self.most_requests = limits.max_requests_per_connection
        self._certain = False

    def keeps(self, raw: RawRequest) -> bool:
        """Whether the connection stays open after the answer to this request: the head of a stream announces it."""
        if self.health.draining:
            return False
        connection: Any = raw.protocol
        return not self.most_requests or connection.served + 1 < self.most_requests

    def may_say_unknown(self) -> bool:
        """Whether "there is no such service or route" is certain: only after some hub has a complete registry."""
        self._certain = self._certain or self.node.table.certain
        return self._certain
