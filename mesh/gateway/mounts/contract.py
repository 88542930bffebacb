"""The contract of a mount: a prefix, a handler, and a part of the OpenAPI document.

Owns: the declaration, and its checks. Leaves to others: the table of mounts (registry), calling handlers (serving).
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterable, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Final

from mesh.errors import ConfigError
from mesh.gateway.entry import Entry
from mesh.gateway.openapi import Document
from mesh.gateway.ports import Node
from mesh.gateway.reply import Reply
from mesh.gateway.request import Request
from mesh.gateway.sse import StreamReply
from mesh.gateway.transfer import Written
from mesh.protocol import http_head
from mesh.protocol.http_head import Headers

_SEGMENT: Final = re.compile(r"[A-Za-z0-9\-._~!$&'()*+,;=:@]+")
_METHOD: Final = re.compile(r"[A-Z][A-Z-]{0,30}")


class BadMount(ConfigError):
    """A mount cannot be used as it is declared; the message names it."""

    code = "bad_mount"


class Stream:
    """An answer that is sent chunk by chunk, as fast as the client reads it.

    When the client disconnects, the iteration is cancelled and `aclose` is called. When the iteration raises before its
    first chunk, the client gets the error as a problem; later, the connection is closed in the middle of the answer, so
    that the client sees that it is incomplete.

    Args:
        items: the chunks; each is at least one byte long.
        content_type: of the whole answer.
        headers: further header fields.
        length: the bytes of all chunks together, when known: it is announced as Content-Length. An answer that does not
            keep it is broken off, as if the iteration had raised.

    Raises:
        ValueError: the status, the type or a header field is malformed, or the field belongs to the gateway.
    """

    __slots__ = ("content_type", "extra", "items", "length", "status")

    def __init__(
        self,
        items: AsyncIterable[bytes],
        content_type: str = "application/octet-stream",
        *,
        status: int = 200,
        headers: Headers | None = None,
        length: int | None = None,
    ) -> None:
        http_head.check_status(status)
        http_head.check_value("Content-Type", content_type)
        if length is not None and length < 0:
            raise ValueError(f"length {length} is negative")
        self.items = items
        self.content_type = content_type
        self.status = status
        self.length = length
        self.extra = http_head.lines(http_head.read_headers(headers)) if headers else b""


#: The answer of a handler. (StreamReply and Written have been written already; only the mounts of mesh return them.)
Answer = Reply | Stream | StreamReply | Written
Handler = Callable[[Request], Awaitable[Answer]]
#: A part of the OpenAPI document (`paths`, `components`, `tags`), or a function that adds one to the document.
OpenApi = Mapping[str, Any] | Callable[["Document"], None]
Lifespan = Callable[["Node"], AbstractAsyncContextManager[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """One prefix of addresses, and the handler that answers below it.

    Attributes:
        prefix: such as "/shop/health": literal segments. It stands for itself and everything below it. No other mount
            may have a prefix above or below it, and declared routes below it are not served.
        handler: answers a request. A MeshError that it raises becomes a problem with its code and status, any other
            exception a problem with status 500 and a line in the log. It is cancelled when the client disconnects, and
            with `deadline_exceeded` when it has not returned within the deadline of the request.
        methods: the HTTP methods that the handler gets. HEAD comes with GET, and is answered without the body; OPTIONS
            and all others are answered for the handler. Empty: the handler gets every request.
        exact: only the prefix itself is mounted, and nothing below it.
        openapi: its part of /openapi.json; a function is called when the gateway starts, and again whenever the routes,
            methods or tasks of services have changed.
        entry: what a request is for, for the concerns of the edge; it may raise a MeshError when the path leads
            nowhere. None: the mount is one thing, with the policies of the gateway.
        lifespan: `lifespan(node)` is an async context manager; it is entered before the gateway listens, and left after
            the last request has been answered. For what the handler needs: a connection pool, a file, a task.

    Raises:
        BadMount: the prefix or a method is malformed.
    """

    prefix: str
    handler: Handler
    methods: tuple[str, ...] = ("GET",)
    exact: bool = False
    openapi: OpenApi | None = None
    lifespan: Lifespan | None = None
    entry: Callable[[Request], Entry] | None = None

    def __post_init__(self) -> None:
        prefix = self.prefix
        if not isinstance(prefix, str) or not prefix.startswith("/"):
            raise BadMount(f'mount: the prefix {prefix!r} does not begin with /; write "/shop"')
        for segment in prefix[1:].split("/") if prefix != "/" else ():
            if _SEGMENT.fullmatch(segment) is None or segment in (".", ".."):
                raise BadMount(
                    f'mount "{prefix}": {segment!r} is not a segment of a prefix; write literal segments, such as '
                    '"/shop/health"'
                )
        if not callable(self.handler):
            raise BadMount(f'mount "{prefix}": the handler is not a function: {self.handler!r:.100}')
        methods: Any = self.methods
        if isinstance(methods, str) or not all(isinstance(each, str) and _METHOD.fullmatch(each) for each in methods):
            raise BadMount(f'mount "{prefix}": methods must be a tuple of HTTP methods like ("GET", "POST")')
        if self.openapi is not None and not callable(self.openapi) and not isinstance(self.openapi, Mapping):
            raise BadMount(f'mount "{prefix}": openapi is neither a mapping nor a function: {self.openapi!r:.100}')
