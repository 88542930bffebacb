"""The contract of an authentication method, and the errors of authentication.

Owns: the declaration. Leaves to others: the methods and their order (registry), when they are asked (concern).

A method reads one kind of credential from a request: a token, a key, a cookie. It returns the identity of the caller,
None when the request does not carry this kind of credential, and raises Unauthenticated for a wrong one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

from mesh.errors import BadRequest, MeshError, TryLater
from mesh.gateway.edge.identity import Identity
from mesh.gateway.ports import Node
from mesh.gateway.request import Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Authenticator:
    """One authentication method of a gateway, made from its settings.

    Attributes:
        name: the scheme of its identities, also in `/mesh`, metrics and logs: "jwt", "apikey".
        authenticate: `await authenticate(request)` is the identity of the caller, or None when the request has no such
            credential. It raises Unauthenticated for a wrong credential, which a route without a requirement ignores,
            AuthUnavailable when it cannot tell, and any other MeshError to refuse the request wherever it leads. It
            reads the head of the request only, never the body.
        recall: an identity that `authenticate` has found before for the same credential, and would find again now;
            None when it must be asked. It raises nothing.
        challenge: the WWW-Authenticate value of refusals, such as 'Bearer realm="mesh"'; "" for a method that has
            none, such as a cookie.
        refusal: the WWW-Authenticate value for a wrong credential; "" for `challenge`.
        schemes: its OpenAPI security schemes by name; one of them is enough.
        lifespan: as of a Concern: a background task, a connection, a file that is watched.
        facts: what `/mesh` shows about it; no secrets.
    """

    name: str
    authenticate: Callable[[Request], Awaitable[Identity | None]]
    recall: Callable[[Request], Identity | None] | None = None
    challenge: str = ""
    refusal: str = ""
    schemes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    lifespan: Callable[[Node], AbstractAsyncContextManager[Any]] | None = None
    facts: dict[str, Any] | None = None


class Denied(BadRequest):
    """The caller is known, and lacks a scope or role that the route requires; or it sent what only a proxy may send."""

    code = "forbidden"
    status = 403


class AuthUnavailable(TryLater):
    """The gateway cannot check the credential now, because the keys of the provider cannot be had."""

    code = "auth_unavailable"


class AuthNotConfigured(MeshError):
    """The route requires a caller, and the gateway has no authentication method: see docs/authentication.md."""

    code = "auth_not_configured"
    status = 500
