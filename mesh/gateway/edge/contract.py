"""The contract of a concern of the edge.

Owns: the declaration. Leaves to others: the list of concerns and their order (registry), the concerns (one module
each).

A concern is a hook around the rest of the request: `hook(request, proceed)` calls `await proceed(request)` for the
answer, or raises a MeshError, which becomes a problem. Header lines that every answer needs, errors too, go to
`request.raw.lines` before `proceed`. What the request is for, and what its route declares, is in `request.entry`.
A concern that the settings do not switch on has no hook in the chain, and costs nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

from mesh.gateway.mounts.contract import Answer
from mesh.gateway.openapi import Document
from mesh.gateway.ports import Node
from mesh.gateway.request import Request

Proceed = Callable[[Request], Awaitable[Answer]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Concern:
    """One concern of a gateway, made from its settings.

    Attributes:
        name: in `/mesh` and in errors: "auth", "cors".
        hook: `await hook(request, proceed)` answers the request.
        lifespan: as of a Mount: entered before the gateway listens, left after the last answer.
        openapi: adds its part to the OpenAPI document, after the mounts have added theirs.
        facts: what `/mesh` shows about it; no secrets.
        wanted: whether any request needs it now, for a concern that options of routes switch on. It is asked again
            whenever the routes, methods or tasks of services have changed; while it returns False, the hook is not in
            the chain. None: always wanted.
    """

    name: str
    hook: Callable[[Request, Proceed], Awaitable[Answer]]
    lifespan: Callable[[Node], AbstractAsyncContextManager[Any]] | None = None
    openapi: Callable[[Document], None] | None = None
    facts: dict[str, Any] | None = None
    wanted: Callable[[], bool] | None = None
