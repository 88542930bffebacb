"""Pages for operators, which the public listener does not serve.

Owns: refusing them there. Leaves to others: which pages these are (config.exposure), finding the mount (mounts).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from mesh.errors import UnknownRoute
from mesh.gateway.mounts.contract import Answer
from mesh.gateway.request import Request

Serve = Callable[[Request], Awaitable[Answer]]


class NotPublic(UnknownRoute):
    """The page is for operators, and is not served on this address."""

    code = "not_public"


def is_admin(request: Request) -> bool:
    """Whether the request came to the admin listener."""
    connection: Any = request.raw.protocol
    return bool(connection.limits.kind == "admin")


def only_on_admin(serve: Serve) -> Serve:
    """The handler of a mount, for requests to the admin listener only."""

    async def guarded(request: Request) -> Answer:
        if not is_admin(request):
            raise NotPublic(
                f"{request.prefix} is not served on this address: ask the admin listener (gateway.admin), or list it "
                "in gateway.public"
            )
        return await serve(request)

    return guarded
