"""Everything that no other mount has: the declared routes of services.

Owns: finding the route, OPTIONS, and `/`, which leads to /docs.
Leaves to others: the routes (gateway.routes), making the call (calling).
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Final

from aiohttp import hdrs
from multidict import istr

from mesh.config.exposure import withheld
from mesh.errors import MethodNotAllowed, Unavailable, UnknownRoute
from mesh.gateway import app_sockets, apps
from mesh.gateway.calling import Calls
from mesh.gateway.entry import NO_POLICY, Entry
from mesh.gateway.front import Front
from mesh.gateway.listeners.admin import is_admin
from mesh.gateway.media import STREAM_TYPES, accepts
from mesh.gateway.mounts.contract import Answer, Mount
from mesh.gateway.openapi import Document
from mesh.gateway.reply import Reply
from mesh.gateway.request import Request
from mesh.gateway.routes import VERBS, Route
from mesh.gateway.websocket.session import UpgradeRequired
from mesh.gateway.websocket.upgrade import WEBSOCKET, asks, serve

_ACCEPT: Final = hdrs.ACCEPT
_REQUEST_METHOD: Final = istr("Access-Control-Request-Method")
_READABLE: Final = frozenset({"GET", "HEAD"})


def mount(front: Front) -> Mount:
    """The declared routes."""
    routes = DeclaredRoutes(front)
    return Mount(prefix="/", handler=routes.answer, methods=(), openapi=Document.add_routes, entry=routes.entry)


class DeclaredRoutes:
    """Handles the requests for declared routes."""

    def __init__(self, front: Front) -> None:
        self._front = front
        self._catalog = front.catalog
        self._call = Calls(front).call
        self._hides_docs = "/docs" in withheld(front.settings)

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
        if raw._message.upgrade and asks(raw):
            return self._upgrade(request)
        if verb == "OPTIONS" and not routes.has(verb, path):
            try:
                allow = ", ".join(VERBS) if path == "*" else routes.allow(path)
            except UnknownRoute:
                if self._front.fallback is not None:
                    return self._fall_back(request)
                raise
            return _ready(Reply(status=204, extra=b"Allow: %b\r\n" % allow.encode()))
        try:
            route, values = routes.find(verb, path) if request.known is None else self._found(request)
        except MethodNotAllowed:
            if verb == "GET" and routes.has(WEBSOCKET, path):
                raw.lines += b"Connection: upgrade\r\nUpgrade: websocket\r\n"
                raise UpgradeRequired(f"{path[:200]}: this is a WebSocket; connect to it with one") from None
            raise
        except UnknownRoute:
            if self._front.fallback is not None:
                return self._fall_back(request)
            if path == "/" and verb in _READABLE and not (self._hides_docs and not is_admin(request)):
                return _ready(Reply(status=302, extra=b"Location: /docs\r\n"))
            if not self._front.may_say_unknown():
                raise Unavailable("no hub has reported the declared routes yet") from None
            raise
        if route.stream is not None and accepts(raw.headers.get(_ACCEPT), STREAM_TYPES):
            route = route.stream
        if route.raw:
            return apps.serve(self._front, request, route)
        return self._call(request, route, values)

    def _fall_back(self, request: Request) -> Awaitable[Answer]:
        """Let the mount answer that gets what no route answers. It knows what it may answer while a service that no hub
        has reported yet may declare the path."""
        fallback = self._front.fallback
        assert fallback is not None
        request.prefix = fallback.prefix
        answer: Awaitable[Answer] = fallback.serve(request)
        return answer

    def entry(self, request: Request) -> Entry:
        """The route of a request.

        Raises:
            MeshError: there is none.
        """
        # A preflight, and OPTIONS in general, is for the route of the method that it asks about.
        raw = request.raw
        verb = raw.headers.get(_REQUEST_METHOD, "GET") if raw.method == "OPTIONS" else raw.method
        if asks(raw):
            verb = WEBSOCKET
        route, values = self._catalog.routes.find(verb, request.path)
        if route.stream is not None and accepts(raw.headers.get(_ACCEPT), STREAM_TYPES):
            route = route.stream
        return Entry("/", route.target, route.record.edge or NO_POLICY, (route, values))

    def _upgrade(self, request: Request) -> Awaitable[Answer]:
        try:
            route, values = self._catalog.routes.find(WEBSOCKET, request.path)
        except UnknownRoute:
            if self._front.fallback is not None:
                return self._fall_back(request)
            raise
        if route.raw:
            return app_sockets.serve(self._front, request, route)
        return serve(self._front, request, route, values)

    def _found(self, request: Request) -> tuple[Route, list[str]]:
        """What `entry` has found. A path without a route is looked up again, for its error.

        Raises:
            Unavailable: there is a route now. The edge has not applied its policy, and must not be passed without.
        """
        found = request.entry.found
        if found is None:
            self._catalog.routes.find(request.raw.method, request.path)
            raise Unavailable("the declared routes have just changed")
        route, values = found
        return route, values


async def _ready(reply: Reply) -> Reply:
    return reply
