"""/livez and /readyz.

Owns: these mounts. Leaves to others: the checks, and what they mean (gateway.health).
"""

from __future__ import annotations

from typing import Final

from mesh.gateway.front import Front
from mesh.gateway.mounts.contract import Mount
from mesh.gateway.reply import Reply
from mesh.gateway.request import Request

#: Answered for any host name: load balancers and supervisors request them by address. With `?verbose` the answers name
#: services and processes, and the host name must be this gateway's.
PROBED: Final = frozenset({"/livez", "/readyz"})


def live_mount(front: Front) -> Mount:
    """/livez."""

    async def live(request: Request) -> Reply:
        return front.health.live_reply(verbose=_is_verbose(request))

    return Mount(prefix="/livez", handler=live, exact=True)


def ready_mount(front: Front) -> Mount:
    """/readyz."""

    async def ready(request: Request) -> Reply:
        verbose = _is_verbose(request)
        return front.health.ready_reply(verbose=verbose, conflicts=front.catalog.routes.conflicts if verbose else ())

    return Mount(prefix="/readyz", handler=ready, exact=True)


def _is_verbose(request: Request) -> bool:
    return any(part.partition("=")[0] == "verbose" for part in request.query_string.split("&"))
