"""Answers of handlers that begin or end sessions.

Owns: whether a handler may do that, and doing it: the gateway signs what a handler says about its user.
Leaves to others: what handlers write (calls.http_session), the parts of sessions (method).

Only answers of the methods in `auth.sessions.login` begin sessions: otherwise each worker could log in any user. The
name is that of the method which the gateway has called. No handler sets the cookies of sessions by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn, Protocol

from mesh.calls.propagation import accept_name, fit_names
from mesh.config.edge_sessions import SessionSettings
from mesh.config.patterns import matches_any
from mesh.errors import BadReply
from mesh.gateway.edge.auth.sessions.cookies import Cookies
from mesh.gateway.edge.auth.sessions.revocation import NoRevocations, Revocations
from mesh.gateway.edge.auth.sessions.token import Session, new_id
from mesh.gateway.front import Front
from mesh.gateway.reply import Reply
from mesh.gateway.request import Request
from mesh.protocol import http_session
from mesh.protocol.http_head import HEADERS, SESSION
from mesh.telemetry.logs import get_logger

_log = get_logger("mesh.gateway")


class Sessions(Protocol):
    """The part of mesh.gateway.edge.auth.sessions.method.Sessions that this module uses."""

    cookies: Cookies
    revocations: Revocations | NoRevocations

    def signed(self, request: Request, session: Session, now: float) -> bytes: ...


class SessionAnswers:
    """Applies to sessions what the answers of handlers ask for."""

    def __init__(self, front: Front, settings: SessionSettings, sessions: Sessions) -> None:
        self._sessions = sessions
        self._login = settings.login
        self._absolute_s = settings.absolute_s
        self._now = front.node.clock.wall
        self._recorder = front.node.recorder

    async def apply(self, request: Request, target: str, meta: Mapping[str, str], reply: Reply) -> None:
        """Begin or end sessions as one answer asks for.

        Args:
            target: the method that has answered.
            meta: of its answer.

        Raises:
            BadReply: the method may not ask for it, or sets a cookie of sessions itself.
            AuthUnavailable: the state of the mesh cannot be used; no session was begun.
        """
        if HEADERS in meta and (name := self._sessions.cookies.sets_reserved(reply.extra)):
            self._refuse(target, f"it sets the cookie {name}, which only http.login and http.logout set")
        told = meta.get(SESSION)
        if not told:
            return
        try:
            asked = http_session.decode(told)
        except ValueError as exc:
            self._refuse(target, str(exc))
        if isinstance(asked, http_session.Login):
            await self._begin(request, target, asked)
        else:
            await self._end(request, target, asked)

    async def _begin(self, request: Request, target: str, asked: http_session.Login) -> None:
        if not matches_any(self._login, target):
            self._refuse(target, f'it is not in auth.sessions.login; to allow it, add "{target}" there')
        roles, scopes = fit_names(frozenset(asked.roles)), fit_names(frozenset(asked.scopes))
        if (
            not asked.principal
            or accept_name(asked.principal) != asked.principal
            or accept_name(asked.tenant) != asked.tenant
            or roles is None
            or scopes is None
            or asked.max_age_s < 0
        ):
            self._refuse(target, "the principal, the tenant, the roles or the scopes are not valid")
        before = request.session
        if before is not None:
            # A copy of the old cookie, which may have been planted before the login, is worth nothing after it.
            await self._sessions.revocations.end(before, self._now())
        now = self._now()
        began_at = await self._sessions.revocations.start(asked.principal, now)
        session = Session(
            new_id(),
            asked.principal,
            tuple(roles.split()),
            tuple(scopes.split()),
            asked.tenant,
            began_at,
            now,
            now + min(self._absolute_s, asked.max_age_s or self._absolute_s),
        )
        try:
            lines = self._sessions.signed(request, session, now)
        except ValueError as exc:
            self._refuse(target, str(exc))
        self._put(request, lines)
        self._recorder.counter("http_sessions_begun", "Login sessions that this gateway has begun.").value += 1
        _log.info("auth.logged_in", principal=asked.principal, target=target, session=session.id.hex()[:8])

    async def _end(self, request: Request, target: str, asked: http_session.Logout) -> None:
        session, now = request.session, self._now()
        principal = asked.principal
        if principal:
            if not matches_any(self._login, target):
                self._refuse(
                    target,
                    "it ends the sessions of another principal, and is not in auth.sessions.login; to allow it, add "
                    f'"{target}" there',
                )
            if accept_name(principal) != principal:
                self._refuse(target, "the principal is not valid")
        if not principal or (session is not None and session.principal == principal):
            # Before anything that may fail: this client is logged out in any case.
            self._put(request, self._sessions.cookies.delete(request.raw))
        if principal:
            await self._sessions.revocations.end_all(principal, now)
        elif session is not None:
            await self._sessions.revocations.end(session, now)
            if asked.everywhere:
                await self._sessions.revocations.end_all(session.principal, now)
        if principal or session is not None:
            self._recorder.counter("http_sessions_ended", "Logouts that this gateway has carried out.").value += 1
            _log.info(
                "auth.logged_out",
                principal=principal or (session.principal if session is not None else ""),
                target=target,
                everywhere=asked.everywhere or bool(principal),
            )

    def _put(self, request: Request, lines: bytes) -> None:
        """Set these cookies instead of those that were set when the request came."""
        raw = request.raw
        if request.session_lines:
            raw.lines = raw.lines.replace(request.session_lines, b"")
        request.session_lines = lines
        raw.lines += lines

    def _refuse(self, target: str, reason: str) -> NoReturn:
        _log.error("auth.session_refused", target=target, reason=reason)
        raise BadReply(f"the answer of {target} is refused: {reason}")
