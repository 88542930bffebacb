"""The concern `auth`: finds out who calls, and refuses those who may not.

Owns: when the methods are asked, and the WWW-Authenticate of refusals.
Leaves to others: the methods (registry), what is required (rules), passing the identity on (carry), a gateway without
any method (guard).

A path that leads nowhere has the requirement of its mount: 401 comes before 404. CORS preflights, to which browsers
attach no credentials, pass.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final, NoReturn

from aiohttp import hdrs
from multidict import istr

from mesh.config.edge_auth import Requirement
from mesh.errors import MeshError, Unauthenticated
from mesh.gateway.edge.auth import guard, registry
from mesh.gateway.edge.auth.carry import carry, checked
from mesh.gateway.edge.auth.contract import Authenticator, AuthUnavailable, Denied
from mesh.gateway.edge.auth.headers import challenge
from mesh.gateway.edge.auth.rules import Rules, check
from mesh.gateway.edge.contract import Concern, Proceed
from mesh.gateway.edge.identity import Identity
from mesh.gateway.front import Front
from mesh.gateway.mounts.contract import Answer
from mesh.gateway.ports import Node
from mesh.gateway.request import Request

#: The name of the concern.
NAME: Final = "auth"
_REQUEST_METHOD: Final = istr("Access-Control-Request-Method")
_FETCH_MODE: Final = istr("Sec-Fetch-Mode")
_BASIC: Final = "Basic "


def make(front: Front) -> Concern:
    """The concern; the guard when the settings switch no method on.

    Raises:
        ConfigError: a setting is wrong; the message names it.
    """
    methods = registry.authenticators(front)
    if not methods:
        return guard.make(front)
    schemes = {name: dict(scheme) for method in methods for name, scheme in method.schemes.items()}
    rules = Rules(front.settings.auth, [mounted.prefix for mounted in front.mounts])
    return Concern(
        name=NAME,
        hook=Auth(front, methods, rules).hook,
        lifespan=lambda node: _lifespans(methods, node),
        openapi=lambda document: document.secure(schemes, rules.of),
        facts={"methods": [{"name": each.name, **(each.facts or {})} for each in methods]},
    )


class Auth:
    """Authenticates and authorizes the requests of one gateway.

    Args:
        methods: in the order in which they are asked.
    """

    def __init__(self, front: Front, methods: Sequence[Authenticator], rules: Rules) -> None:
        self._methods = methods
        self._rules = rules
        self._recorder = front.node.recorder
        self._realm = front.settings.mesh.name
        self._bearers = frozenset(each.name for each in methods if each.challenge.startswith("Bearer "))
        # Tokens and API keys have the same challenge.
        challenges = dict.fromkeys(each.challenge for each in methods if each.challenge)
        self._challenges = b"".join(map(_challenge, challenges))
        self._silent = b"".join(_challenge(each) for each in challenges if not each.startswith(_BASIC))
        self._recall = methods[0].recall

    def hook(self, request: Request, proceed: Proceed) -> Awaitable[Answer]:
        """Let a request pass, or refuse it. (No coroutine for a credential that the first method has seen before.)

        Raises:
            Unauthenticated: a caller is required, and the request has no credential or a wrong one.
            Denied: the caller lacks a scope or a role.
            AuthUnavailable: whether the credential is right cannot be found out now.
        """
        raw = request.raw
        if raw.method == "OPTIONS" and _REQUEST_METHOD in raw.headers and hdrs.ORIGIN in raw.headers:
            return proceed(request)
        required = self._rules.of(request.entry, request.query_string)
        identity = self._recall(request) if self._recall is not None else None
        if identity is None:
            return self._find(request, proceed, required)
        carry(request, identity)
        return self._pass(request, proceed, required, identity)

    async def _find(self, request: Request, proceed: Proceed, required: Requirement) -> Answer:
        """Ask the methods, in order."""
        raw = request.raw
        identity: Identity | None = None
        for method in self._methods:
            try:
                identity = await method.authenticate(request)
                if identity is not None:
                    carry(request, checked(identity))
                    break
            except (Unauthenticated, AuthUnavailable) as exc:
                if required.user:
                    self._refuse(request, exc, method)
                # Without a requirement, a wrong credential is none: with an expired token one must be able to log in.
                identity = None
                break
            except Denied:
                self._count(method.name, Denied.code)
                raise
        if required.user and identity is None:
            told = "none that is accepted here" if hdrs.AUTHORIZATION in raw.headers else "none"
            self._refuse(request, Unauthenticated(f"this requires a credential, and the request has {told}"))
        return await self._pass(request, proceed, required, identity)

    def _pass(
        self, request: Request, proceed: Proceed, required: Requirement, identity: Identity | None
    ) -> Awaitable[Answer]:
        if identity is not None and (required.scopes or required.roles):
            self._authorize(request, required, identity)
        request.challenges = self._challenges_for
        return proceed(request)

    def _challenges_for(self, request: Request) -> bytes:
        return self._silent if self._silent and _is_script(request) else self._challenges

    def _authorize(self, request: Request, required: Requirement, identity: Identity) -> None:
        try:
            check(required, identity)
        except Denied:
            self._count(identity.scheme, Denied.code)
            if required.scopes and identity.scheme in self._bearers:
                # RFC 6750, section 3.1: which scopes a token for this needs.
                parameters = {"realm": self._realm, "error": "insufficient_scope", "scope": " ".join(required.scopes)}
                request.raw.lines += _challenge(challenge("Bearer", **parameters))
            raise

    def _count(self, method: str, code: str) -> None:
        counter = self._recorder.counter(
            "http_auth_refused", "Requests refused because of their caller.", method=method, code=code
        )
        counter.value += 1

    def _refuse(self, request: Request, error: MeshError, method: Authenticator | None = None) -> NoReturn:
        """Refuse a request, with the challenges of all methods, or of the one with the wrong credential."""
        self._count(method.name if method else "", error.code)
        if error.status == Unauthenticated.status:
            mine = method.refusal or method.challenge if method is not None else ""
            silent = self._silent and (not mine or mine.startswith(_BASIC)) and _is_script(request)
            request.raw.lines += self._silent if silent else _challenge(mine) if mine else self._challenges
        raise error


def _is_script(request: Request) -> bool:
    """Whether a script of a page sent the request: for a Basic challenge the browser would show a dialog of its own."""
    return request.raw.headers.get(_FETCH_MODE, "navigate") != "navigate"


def _challenge(value: str) -> bytes:
    return b"WWW-Authenticate: %b\r\n" % value.encode("ascii", "replace")


@asynccontextmanager
async def _lifespans(methods: Sequence[Authenticator], node: Node) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        for method in methods:
            if method.lifespan is not None:
                await stack.enter_async_context(method.lifespan(node))
        yield
