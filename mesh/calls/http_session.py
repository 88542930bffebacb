"""Answers of handlers that begin or end the login session of a browser.

Owns: the functions that users call, and their checks.
Leaves to others: how the request travels (protocol.http_session), cookies and signatures, and which methods may use
this (gateway.edge.auth.sessions). docs/sessions.md describes sessions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from mesh.calls.http_response import Response, SetCookie
from mesh.calls.propagation import read_name, read_names
from mesh.errors import BadArguments
from mesh.protocol import http_session
from mesh.protocol.http_head import Headers

T = TypeVar("T")


def login(
    principal: str,
    *,
    body: T = None,  # type: ignore[assignment]  # T is None without an argument
    roles: Iterable[str] = (),
    scopes: Iterable[str] = (),
    tenant: str = "",
    max_age_s: int | None = None,
    status: int | None = None,
    headers: Headers | None = None,
    cookies: Sequence[SetCookie] = (),
) -> Response[T]:
    """An answer with which the gateway begins a session for this client: it sets the session cookie.

    The handler has checked who the client is, with a password, say; the gateway believes it when
    `auth.sessions.login` lists the method, and answers `bad_reply` otherwise. A session that the client had ends.

    Example::

        @http.post("/login", auth=None)
        async def login(self, name: str, password: str) -> http.Response[Profile]:
            user = await self.checked(name, password)
            return http.login(user.name, roles=user.roles, body=user.profile)

    Args:
        principal: the unique name of the user, which `mesh.current().principal` gives to everything that later requests
            of the session cause.
        body, status, headers, cookies: of the answer; see Response.
        roles, scopes, tenant: of the principal, for the whole session: a change takes effect with the next login.
        max_age_s: the session ends after so many seconds, although it is used; None: after `auth.sessions.absolute`,
            which is also the most.

    Raises:
        ValueError: a part of the answer is malformed, or max_age_s is not a positive whole number.
        BadArguments: the principal, the tenant, a role or a scope is malformed or too long; see CallContext.
    """
    if not read_name("principal", principal):
        raise BadArguments("principal: is empty; a session belongs to a principal")
    if max_age_s is not None and (type(max_age_s) is not int or max_age_s <= 0):
        raise ValueError(f"max_age_s is a positive whole number of seconds, not {max_age_s!r:.40}")
    request = http_session.Login(
        principal,
        tuple(read_names("roles", roles).split()),
        tuple(read_names("scopes", scopes).split()),
        read_name("tenant", tenant),
        max_age_s or 0,
    )
    return _with_request(Response(body, status=status, headers=headers, cookies=cookies), request)


def logout(
    *,
    body: T = None,  # type: ignore[assignment]  # T is None without an argument
    everywhere: bool = False,
    principal: str = "",
    status: int | None = None,
    headers: Headers | None = None,
    cookies: Sequence[SetCookie] = (),
) -> Response[T]:
    """An answer with which the gateway ends the session of this client: it revokes the session and deletes its cookies.

    Example::

        @http.post("/logout", auth="user")
        async def logout(self, everywhere: bool = False) -> http.Response[None]:
            return http.logout(everywhere=everywhere, status=204)

    Args:
        body, status, headers, cookies: of the answer; see Response.
        everywhere: end all sessions of the principal, on all devices.
        principal: end all sessions of this other principal, whose account was closed or whose rights have changed; the
            session of the request goes on. Only methods in `auth.sessions.login` may do this.

    Raises:
        ValueError: a part of the answer is malformed.
        BadArguments: the principal is not printable text of at most 256 characters.
    """
    request = http_session.Logout(bool(everywhere), read_name("principal", principal))
    return _with_request(Response(body, status=status, headers=headers, cookies=cookies), request)


def _with_request(response: Response[T], request: http_session.Request) -> Response[T]:
    response.head = response.head._replace(session=http_session.encode(request))
    return response
