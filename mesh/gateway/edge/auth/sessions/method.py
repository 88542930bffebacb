"""The authentication method `session`: the session cookie of a request.

Owns: the parts of sessions of one gateway, and the order of the checks of a request.
Leaves to others: each check (cookies, csrf, token, revocation), beginning and ending sessions (answers).
"""

from __future__ import annotations

from typing import Any, Final

from mesh.config.edge_auth_checks import require
from mesh.config.edge_sessions import SessionSettings
from mesh.config.patterns import matches_any
from mesh.gateway.edge.auth.contract import Authenticator
from mesh.gateway.edge.auth.sessions import csrf, token
from mesh.gateway.edge.auth.sessions.answers import SessionAnswers
from mesh.gateway.edge.auth.sessions.cookies import VARY, Cookies
from mesh.gateway.edge.auth.sessions.csrf import CsrfRefused, CsrfTokens, comes_from_here
from mesh.gateway.edge.auth.sessions.keys import KeyRing, reveal_all
from mesh.gateway.edge.auth.sessions.revocation import NAMESPACE, NoRevocations, Revocations
from mesh.gateway.edge.auth.sessions.token import SCHEME, Expired, Session, Tokens
from mesh.gateway.edge.identity import Identity
from mesh.gateway.entry import is_protected
from mesh.gateway.front import Front
from mesh.gateway.request import Request
from mesh.gateway.sites import SAFE

_TABLE: Final = "auth.sessions"


def make(front: Front) -> Authenticator | None:
    """The method; None without [auth.sessions].

    Raises:
        ConfigError: a setting is wrong, or a secret cannot be read; the message names it.
    """
    settings = front.settings.auth.sessions
    if not settings.is_on:
        return None
    require(front.settings, _TABLE)
    sessions = Sessions(front, settings)
    front.sessions = SessionAnswers(front, settings, sessions)
    name = settings.cookie if settings.secure == "never" else f"__Host-{settings.cookie}"
    return Authenticator(
        name=SCHEME,
        authenticate=sessions.authenticate,
        schemes={"session": {"type": "apiKey", "in": "cookie", "name": name}},
        facts={"login": settings.login, "revocation": settings.revocation, "keys": len(settings.keys)},
    )


class Sessions:
    """The sessions of one gateway.

    Attributes:
        cookies, tokens, csrf, revocations: their parts.
    """

    def __init__(self, front: Front, settings: SessionSettings) -> None:
        secrets = reveal_all(settings.keys, f"{_TABLE}.keys")
        self._now = front.node.clock.wall
        self._recorder = front.node.recorder
        self._login = settings.login
        self._idle_s = settings.idle_s
        self.cookies = Cookies(settings)
        self.tokens = Tokens(KeyRing(token.PURPOSE, secrets), settings.idle_s)
        self.csrf = CsrfTokens(KeyRing(csrf.PURPOSE, secrets))
        self.revocations: Revocations | NoRevocations = NoRevocations()
        if settings.revocation == "state":
            state: Any = lambda: front.node.durable.state(NAMESPACE)  # noqa: E731  # mypy infers no Protocol from it
            self.revocations = Revocations(state, front.node.clock, settings)

    async def authenticate(self, request: Request) -> Identity | None:
        """The user of the session of a request; None without one, or when another site has sent the request.

        Raises:
            Unauthenticated: the cookie is not valid, or the session has ended.
            CsrfRefused: the request changes something, and has not the token of the session.
            AuthUnavailable: whether the session goes on cannot be found out now.
        """
        raw = request.raw
        text = self.cookies.read(raw)
        if not text or not comes_from_here(raw):
            return None
        now = self._now()
        try:
            session = self.tokens.read(text, now)
            await self.revocations.check(session)
        except Expired:
            self._add(request, self.cookies.delete(raw))
            raise
        if raw.method not in SAFE:
            try:
                await self.csrf.check(request, session.id)
            except CsrfRefused:
                if self._is_login(request):
                    # The login form of a user who has a session still. It gives the request no rights, and ends.
                    request.session = session
                    return None
                self._recorder.counter("http_csrf_refused", "Requests with a session and without its token.").value += 1
                raise
        request.session = session
        if self.tokens.is_due(text, session, now):
            self._add(request, self.signed(request, _renewed(session, now), now))
        raw.lines += VARY
        return session.identity()

    def signed(self, request: Request, session: Session, now: float) -> bytes:
        """The header lines that give the client this session.

        Raises:
            ValueError: it is too long for a cookie.
        """
        max_age_s = min(self._idle_s, session.expires_at - now)
        return self.cookies.set(request.raw, self.tokens.sign(session), self.csrf.token(session.id), max_age_s)

    def _add(self, request: Request, lines: bytes) -> None:
        request.session_lines = lines
        request.raw.lines += lines

    def _is_login(self, request: Request) -> bool:
        entry = request.entry
        return bool(entry.name) and not is_protected(entry.policy) and matches_any(self._login, entry.name)


def _renewed(session: Session, now: float) -> Session:
    return Session(
        session.id,
        session.principal,
        session.roles,
        session.scopes,
        session.tenant,
        session.began_at,
        now,
        session.expires_at,
    )
