"""One HTTP request, as the gateway and its mounts see it.

Owns: the request object, and the data that is recorded about a request while it is answered.
Leaves to others: parsing HTTP (aiohttp), the limits on bodies (body), answering (server, mounts).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Set
from typing import Any, Protocol

from aiohttp import hdrs, web
from multidict import CIMultiDictProxy, istr

from mesh.calls.context import CURRENT, CallContext, PlainContext
from mesh.errors import DeadlineExceeded, MeshError
from mesh.gateway.body_stream import BodyStream
from mesh.gateway.clients import Clients
from mesh.gateway.edge.identity import Identity
from mesh.gateway.entry import Entry
from mesh.gateway.headers import read_timeout
from mesh.gateway.paths import split_path
from mesh.gateway.ports import Node
from mesh.gateway.query import read_pairs
from mesh.protocol import http_head


class Bodies(Protocol):
    """Reads bodies within the limits of the gateway; see mesh.gateway.body."""

    async def read(self, request: Request, timeout: float, most: int = 0) -> bytes: ...
    def stream(
        self, request: Request, *, max_bytes: int | None = None, timeout: float | None = None, decode: bool = True
    ) -> BodyStream: ...


class Table(Protocol):
    """Finds what a request is for; see mesh.gateway.mounts.registry."""

    def entry(self, request: Request) -> Entry: ...


class Front(Protocol):
    """What the gateway shares with a request; see mesh.gateway.front."""

    @property
    def node(self) -> Node: ...
    @property
    def clients(self) -> Clients: ...
    @property
    def bodies(self) -> Bodies: ...
    @property
    def timeout_s(self) -> float: ...
    @property
    def mounts(self) -> Table: ...


TIMEOUT = istr("X-Request-Timeout")


class RawRequest(web.BaseRequest):
    """A request as aiohttp parses it.

    Attributes:
        lines: the header lines that every answer to it has: trace, request id, CORS. Each ends with CR LF.
        defaults: the names of those in `lines` that an answer may set itself instead, in lower case.
    """

    ATTRS = web.BaseRequest.ATTRS | frozenset(["lines", "defaults"])
    lines = b""
    defaults: Set[bytes] = frozenset()

    def override(self, extra: bytes) -> None:
        """Leave out the defaults that an answer with these lines sets itself. Call it before the answer is written."""
        named = {line.partition(b":")[0].lower() for line in extra.splitlines()}
        if doubled := named & self.defaults:
            kept = self.lines.splitlines(keepends=True)
            self.lines = b"".join(line for line in kept if line.partition(b":")[0].lower() not in doubled)


class ToldRequest(RawRequest):
    """A request on a connection that began with a PROXY header."""

    @property
    def remote(self) -> str | None:
        """The address of the client; that of the proxy for the proxy's own requests."""
        told = getattr(self.protocol, "told", None)
        return told.address if told is not None else super().remote


class Request:
    """A request to a mount. Mounts outside of mesh use the documented attributes and methods only.

    Attributes:
        path: the path as received, still percent-encoded, without the query.
        query_string: what follows the `?`, as received; "" without one.
        prefix: the prefix of the mount that answers; "" for a declared route.
        trace: the W3C traceparent of the request; calls that are made for it continue this trace.

    Internal attributes:
        raw: the request as aiohttp parses it.
        front: what the gateway shares with its mounts.
        target: "service.method" that it was for, or the prefix of the mount; "" for the gateway's own pages.
        began_at, seconds: when it arrived, on the monotonic clock, and how long its call took; 0.0 until known.
        held, body_bytes: bytes of its body that count towards the limit on all bodies; its length as received.
        failure: the error that ended a stream after its head was sent.
        known: what `entry` has found; None as long as no concern of the edge has asked.
        identity: who sent it; None for a caller that the edge has not authenticated.
        limit: the deadline of the handler of a mount, while it runs.
        moved_at: when the last part of a streamed body arrived: `gateway.timeout` counts from then.
        session: the login session that it belongs to; see mesh.gateway.edge.auth.sessions.
        session_lines: the header lines about it that the answer has.
        early_body: its body, when it was read before its mount asked for it.
        challenges: gives the lines WWW-Authenticate for when a service, which may know more than the edge, refuses the
            caller; None without authentication.
    """

    # Class attributes instead of an __init__ with ten assignments: one object is made for every request.
    path = ""
    query_string = ""
    prefix = ""
    trace = ""
    target = ""
    seconds = 0.0
    held = 0
    body_bytes = 0
    failure: MeshError | None = None
    known: Entry | None = None
    identity: Identity | None = None
    limit: asyncio.Timeout | None = None
    moved_at = 0.0
    session: Any = None
    session_lines = b""
    early_body: bytes | None = None
    challenges: Callable[[Request], bytes] | None = None

    def __init__(self, raw: RawRequest, front: Front, began_at: float) -> None:
        self.raw = raw
        self.front = front
        self.began_at = began_at

    def __repr__(self) -> str:
        return f"<Request {self.method} {self.path[:100]}>"

    @property
    def entry(self) -> Entry:
        """What the request is for, before its mount answers it."""
        if self.known is None:
            self.known = self.front.mounts.entry(self)
        return self.known

    @property
    def method(self) -> str:
        """The HTTP method, such as "GET"."""
        return self.raw.method

    @property
    def headers(self) -> CIMultiDictProxy[str]:
        """The header fields; names are compared without regard to case. `getall(name, ())` gives repeated ones."""
        return self.raw.headers

    @property
    def segments(self) -> list[str]:
        """The segments of the path below the prefix, percent-decoded; [] for the prefix itself.

        They are safe to join to a directory, as the values of path parameters are.

        Raises:
            BadRequest: a segment is not UTF-8, is empty, "." or "..", or holds a slash, a backslash or NUL.
        """
        return split_path(self.path[len(self.prefix) :])

    @property
    def query(self) -> Mapping[str, list[str]]:
        """The values of the query string by name, decoded, in order.

        Raises:
            BadArguments: it is not UTF-8, or has more than 1,000 values.
        """
        found: dict[str, list[str]] = {}
        for name, value in read_pairs(self.query_string):
            found.setdefault(name, []).append(value)
        return found

    @property
    def context(self) -> CallContext:
        """The context of the work that the request causes, as `mesh.current()` gives it: tenant, principal, baggage."""
        context = CURRENT.get()
        if context is None:
            context = PlainContext(f"{self.method} {self.path[:200]}", trace=self.trace or None)
            CURRENT.set(context)
        return context

    @property
    def client(self) -> str:
        """The address of the client, also behind a proxy of `gateway.proxies`; "-" when it is not known."""
        return self.front.clients.of(self.raw)

    @property
    def scheme(self) -> str:
        """ "https" or "http": what the client speaks, to the gateway or to a proxy of `gateway.proxies`."""
        return self.front.clients.scheme(self.raw)

    @property
    def host(self) -> str:
        """The host, with its port, that the client asked for, also behind a proxy of `gateway.proxies`; "" for none."""
        return self.front.clients.host(self.raw) or self.raw.headers.get(hdrs.HOST, "")

    @property
    def node(self) -> Node:
        """The gateway's node, for calls that `call` does not cover."""
        return self.front.node

    @property
    def timeout_s(self) -> float:
        """How long the client waits, from the arrival of the request: X-Request-Timeout, or `gateway.timeout`.

        Raises:
            BadRequest: X-Request-Timeout is malformed.
        """
        told = self.raw.headers.get(TIMEOUT)
        return self.front.timeout_s if told is None else read_timeout(told)

    @property
    def remaining_s(self) -> float:
        """Seconds until the deadline of the request; 0.0 when it has passed."""
        return max(0.0, self.timeout_s - (self.front.node.clock.now() - max(self.began_at, self.moved_at)))

    async def body(self) -> bytes:
        """Read the whole body, decompressed. It counts towards the gateway's limits until the request is answered.

        Raises:
            TooLarge: it is larger than `gateway.max_body`.
            Overloaded: all bodies together exceed `gateway.max_body_total`.
            BadRequest: it did not arrive in time, is broken, or has an unknown Content-Encoding.
        """
        return await self.front.bodies.read(self, self.remaining_s)

    def stream(self, *, max_bytes: int | None = None, decode: bool = True) -> BodyStream:
        """The body as an asynchronous iterator of chunks, for uploads of any size: it is never in memory as a whole.

        The gateway reads from the connection only as fast as the chunks are taken. With each chunk the deadline
        `gateway.timeout` begins anew; one that the client names in X-Request-Timeout is for the whole request.

        ::

            async for chunk in request.stream(max_bytes=5 * 2**30):
                digest.update(chunk)

        Args:
            max_bytes: maximum bytes, both as received and decompressed; None is `gateway.max_body`.
            decode: decompress the body; False passes it on as it was sent, as Content-Encoding says.

        Raises:
            TooLarge: it is larger. When Content-Length announces this, nothing is read.
            Overloaded: all bodies together exceed `gateway.max_body_total`; a stream counts as 256 KiB.
            BadRequest: it arrives more slowly than `gateway.min_body_rate`, or not in time; it is broken, or has an
                unknown Content-Encoding.
        """
        timeout = self.remaining_s if TIMEOUT in self.raw.headers else None
        return self.front.bodies.stream(self, max_bytes=max_bytes, timeout=timeout, decode=decode)

    def progressed(self, size: int) -> None:
        """Note that `size` bytes of a streamed body have arrived. Internal."""
        self.body_bytes += size
        if TIMEOUT not in self.raw.headers:
            self.moved_at = self.front.node.clock.now()
            if self.limit is not None:
                self.limit.reschedule(asyncio.get_running_loop().time() + self.front.timeout_s)

    async def call(self, target: str, /, *args: Any, **kwargs: Any) -> Any:
        """Call a method of a service, within the deadline and the trace of this request.

        Args:
            target: "service.method".
            args, kwargs: its arguments.

        Raises:
            MeshError: the error of the call; when a mount does not catch it, it becomes the answer.
        """
        remaining_s = self.remaining_s
        if remaining_s <= 0.0:
            raise DeadlineExceeded(f"{target}: the deadline of the request has passed")
        return await self.front.node.call(target, *args, timeout=remaining_s, **kwargs)

    def add_header(self, name: str, value: str) -> None:
        """Add a header field to the answer, whatever the answer is, an error too. Call it before the answer begins.

        Raises:
            ValueError: name or value is malformed, or the field belongs to the gateway.
        """
        http_head.check_field(name, value)
        self.raw.lines += http_head.lines(((name, value),))
