"""Everything that no other mount has: the declared routes of services.

Owns: finding the route, OPTIONS, and `/`, which leads to /docs.
Leaves to others: the routes (gateway.routes), making the call (calling).
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Final

from aiohttp import hdrs

from mesh.errors import Unavailable, UnknownRoute
from mesh.gateway.calling import Calls
from mesh.gateway.front import Front
from mesh.gateway.media import STREAM_TYPES, accepts
from mesh.gateway.mounts.contract import Answer, Mount
from mesh.gateway.openapi import Document
from mesh.gateway.reply import Reply
from mesh.gateway.request import Request
from mesh.gateway.routes import VERBS

_ACCEPT: Final = hdrs.ACCEPT
_READABLE: Final = frozenset({"GET", "HEAD"})


def mount(front: Front) -> Mount:
    """The declared routes."""
    return Mount(prefix="/", handler=DeclaredRoutes(front).answer, methods=(), openapi=Document.add_routes)


class DeclaredRoutes:
    """Handles the requests for declared routes."""

    def __init__(self, front: Front) -> None:
        self._front = front
        self._catalog = front.catalog
        self._call = Calls(front).call

    def answer(self, request: Request) -> Awaitable[Answer]:
        """Start the call of a route. (Not a coroutine itself: this is the path of nearly all requests.)

        Raises:
            UnknownRoute, MethodNotAllowed, BadRequest: there is no such route.
            Unavailable: there may be one, but no hub has a complete registry yet.
        """
        raw = request.raw
        verb = raw.method
        path = request.path
        routes = self._catalog.routes
        if verb == "OPTIONS":
            allow = ", ".join(VERBS) if path == "*" else routes.allow(path)
            return _ready(Reply(status=204, extra=b"Allow: %b\r\n" % allow.encode()))
        try:
            route, values = routes.find(verb, path)
        except UnknownRoute:
            if path == "/" and verb in _READABLE:
                return _ready(Reply(status=302, extra=b"Location: /docs\r\n"))
            if not self._front.may_say_unknown():
                raise Unavailable("no hub has reported the declared routes yet") from None
            raise
        if route.stream is not None and accepts(raw.headers.get(_ACCEPT), STREAM_TYPES):
            route = route.stream
        return self._call(request, route, values)


async def _ready(reply: Reply) -> Reply:
    return reply
