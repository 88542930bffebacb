"""/rpc: `POST /rpc/{service}/{method}` calls a method by name.

Owns: reading the name. Leaves to others: which methods can be reached (catalog), making the call (calling).
"""

from __future__ import annotations

from typing import Final
from urllib.parse import unquote

from mesh.errors import Unavailable, UnknownRoute, UnknownService
from mesh.gateway.calling import Calls
from mesh.gateway.catalog import Target
from mesh.gateway.entry import NO_POLICY, Entry
from mesh.gateway.front import Front
from mesh.gateway.mounts.contract import Answer, Mount
from mesh.gateway.mounts.serving import answer_method
from mesh.gateway.openapi import Document
from mesh.gateway.request import Request
from mesh.gateway.routes import allow_header

_ALLOW: Final = allow_header({"POST"})


def mount(front: Front) -> Mount:
    """/rpc."""
    call = Calls(front).call
    catalog = front.catalog

    def find(path: str) -> Target:
        return catalog.target(*_split(path))

    def entry(request: Request) -> Entry:
        target = find(request.path)
        return Entry("/rpc", target.target, target.method.edge or NO_POLICY)

    async def answer(request: Request) -> Answer:
        _split(request.path)
        other = answer_method(request, _ALLOW, "methods are called with POST")
        if other is not None:
            return other
        try:
            target = find(request.path)
        except UnknownService:
            if not front.may_say_unknown():
                raise Unavailable("no hub has reported the running services yet") from None
            raise
        if request.known is not None and request.known.name != target.target:
            # It has appeared since: the edge has not applied its policy.
            raise Unavailable("the methods have just changed")
        return await call(request, target, None)

    return Mount(prefix="/rpc", handler=answer, methods=(), openapi=Document.add_methods, entry=entry)


def _split(path: str) -> tuple[str, str]:
    """Service and method of a path below /rpc/. Raises UnknownRoute."""
    service, slash, method = path[5:].partition("/")
    if not slash or not method or "/" in method:
        raise UnknownRoute(f"{path[:200]}: call a method with POST /rpc/SERVICE/METHOD")
    return unquote(service), unquote(method)
