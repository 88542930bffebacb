"""/rpc: `POST /rpc/{service}/{method}` calls a method by name.

Owns: reading the name. Leaves to others: which methods can be reached (catalog), making the call (calling).
"""

from __future__ import annotations

from typing import Final
from urllib.parse import unquote

from mesh.errors import Unavailable, UnknownRoute, UnknownService
from mesh.gateway.calling import Calls
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

    async def answer(request: Request) -> Answer:
        service, slash, method = request.path[5:].partition("/")
        if not slash or not method or "/" in method:
            raise UnknownRoute(f"{request.path[:200]}: call a method with POST /rpc/SERVICE/METHOD")
        other = answer_method(request, _ALLOW, "methods are called with POST")
        if other is not None:
            return other
        try:
            target = catalog.target(unquote(service), unquote(method))
        except UnknownService:
            if not front.may_say_unknown():
                raise Unavailable("no hub has reported the running services yet") from None
            raise
        return await call(request, target, None)

    return Mount(prefix="/rpc", handler=answer, methods=(), openapi=Document.add_methods)
