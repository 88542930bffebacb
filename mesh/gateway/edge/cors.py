"""Cross-origin resource sharing: which web pages may read answers, and send requests that are not simple.

Owns: the header fields of CORS, and answering preflights.
Leaves to others: the lists of origins (origins), refusing requests from other pages (sites).

A preflight carries no credentials, so it is answered here, before authentication and limits. It names the methods that
the path has. Source: the Fetch standard, "HTTP-network-or-cache fetch" and "CORS protocol".
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Final

from aiohttp import hdrs
from multidict import istr

from mesh.errors import ConfigError
from mesh.gateway.edge.contract import Concern, Proceed
from mesh.gateway.front import Front
from mesh.gateway.mounts.contract import Answer
from mesh.gateway.origins import Origins
from mesh.gateway.reply import Reply
from mesh.gateway.request import Request
from mesh.protocol.http_head import is_token

_ORIGIN: Final = hdrs.ORIGIN
_REQUEST_METHOD: Final = istr("Access-Control-Request-Method")
_REQUEST_HEADERS: Final = istr("Access-Control-Request-Headers")
_REQUEST_PRIVATE: Final = istr("Access-Control-Request-Private-Network")

#: Request header fields that mesh itself reads.
_OWN_REQUEST: Final = (
    "Content-Type",
    "Content-Encoding",
    "Idempotency-Key",
    "If-Match",
    "If-None-Match",
    "Last-Event-ID",
    "Range",
    "X-Request-Timeout",
    "X-Request-Id",
    "traceparent",
)
#: Answer header fields that mesh itself sets. With credentials, browsers do not take `*` for every field.
_OWN_ANSWER: Final = (
    "Accept-Ranges",
    "Allow",
    "Content-Range",
    "ETag",
    "Location",
    "RateLimit",
    "RateLimit-Policy",
    "Retry-After",
    "X-Request-Id",
    "traceparent",
)

#: The bytes of Access-Control-Request-Headers that are read.
_MOST_REQUESTED: Final = 2000

#: The number of origins to keep the lines of.
MOST_GRANTS: Final = 1024

_VARY: Final = b"Vary: Origin\r\n"
_VARY_PREFLIGHT: Final = (
    b"Vary: Origin, Access-Control-Request-Method, Access-Control-Request-Headers, "
    b"Access-Control-Request-Private-Network\r\n"
)


def make(front: Front) -> Concern:
    """The concern; it is in the chain while the gateway or a route lists origins."""
    return Cors(front).concern


class Cors:
    """CORS of one gateway.

    Raises:
        ConfigError: `gateway.cors` contradicts `gateway.origins`, or lists something that is not a name of a field.
    """

    def __init__(self, front: Front) -> None:
        settings = front.settings.gateway.cors
        self._front = front
        self._shared = front.sites.origins
        self._credentials = settings.credentials
        self._private = settings.private_network
        for key, names in (("headers", settings.headers), ("expose", settings.expose)):
            for name in names:
                if not is_token(name):
                    raise ConfigError(f'gateway.cors.{key}: "{name}" is not the name of a header field')
        if settings.credentials and self._shared.gateway.anyone:
            raise ConfigError(
                'gateway.cors.credentials: cannot be combined with "*" or "null" in gateway.origins, which stand for '
                "pages of any site; list the origins"
            )
        self._any_header = "*" in settings.headers
        self._headers = ", ".join((*_OWN_REQUEST, *(name for name in settings.headers if name != "*")))
        self._exposed = "*" in settings.expose
        self._exposed_names = ", ".join((*_OWN_ANSWER, *(name for name in settings.expose if name != "*")))
        self._grants: dict[tuple[Origins, str | None], bytes] = {}
        self._max_age = b"Access-Control-Max-Age: %d\r\n" % settings.max_age_s
        self.concern = Concern(
            name="cors", hook=self.hook, wanted=self._wanted, facts={"credentials": settings.credentials}
        )

    def _wanted(self) -> bool:
        return bool(self._shared.gateway) or any(policy.cors for policy in self._front.catalog.policies())

    def hook(self, request: Request, proceed: Proceed) -> Awaitable[Answer]:
        """Add the header fields, and answer a preflight. (No coroutine for other requests.)"""
        raw = request.raw
        headers = raw.headers
        origin = headers.get(_ORIGIN)
        origins = self._shared.of(request.entry.policy)
        if not origins:
            return proceed(request)
        grant = self._grants.get((origins, origin))
        if grant is None:
            if len(self._grants) >= MOST_GRANTS:  # clients may send any origin
                self._grants.clear()
            grant = self._grants[origins, origin] = self._grant(origins, origin)
        if raw.method == "OPTIONS" and origin is not None and _REQUEST_METHOD in headers:
            return self._answer_preflight(request, proceed, grant)
        raw.lines += grant
        return proceed(request)

    async def _answer_preflight(self, request: Request, proceed: Proceed, grant: bytes) -> Answer:
        raw = request.raw
        headers = raw.headers
        raw.lines += _VARY_PREFLIGHT
        private = headers.get(_REQUEST_PRIVATE, "").lower() == "true"
        if b"Access-Control-Allow-Origin" not in grant or (private and not self._private):
            return await proceed(request)
        raw.lines += grant.replace(_VARY, b"").partition(b"Access-Control-Expose-Headers")[0]
        methods = await self._front.mounts.methods(request)
        return Reply(status=204, extra=self._preflight(request, methods, private=private))

    def _grant(self, origins: Origins, origin: str | None) -> bytes:
        """The lines of an answer that is not for a preflight."""
        credentials = self._credentials and not origins.anyone
        if origins.every:
            # Not the origin itself: the answer is the same for everyone, also in caches.
            return b"Access-Control-Allow-Origin: *\r\n" + self._expose(credentials=False)
        if origin is None or origin not in origins or not origin.isascii() or not origin.isprintable():
            return _VARY
        return b"Access-Control-Allow-Origin: %b\r\n%b%b%b" % (
            origin.encode(),
            _VARY,
            b"Access-Control-Allow-Credentials: true\r\n" if credentials else b"",
            self._expose(credentials=credentials),
        )

    def _expose(self, *, credentials: bool) -> bytes:
        # Pages read only a few header fields of an answer unless they are named: Location is not among them.
        names = "*" if self._exposed and not credentials else self._exposed_names
        return f"Access-Control-Expose-Headers: {names}\r\n".encode()

    def _preflight(self, request: Request, methods: tuple[str, ...], *, private: bool) -> bytes:
        headers = request.raw.headers
        asked = headers[_REQUEST_METHOD]
        # A mount of another package that gets every method decides about it when the request comes.
        allowed = ", ".join(methods) if methods else (asked if is_token(asked) else "")
        names = self._headers
        if self._any_header:
            requested = headers.get(_REQUEST_HEADERS, "")[:_MOST_REQUESTED].split(",")
            names = ", ".join((names, *(name for each in requested if is_token(name := each.strip()))))
        return b"%bAccess-Control-Allow-Methods: %b\r\nAccess-Control-Allow-Headers: %b\r\n%b" % (
            b"Access-Control-Allow-Private-Network: true\r\n" if private else b"",
            allowed.encode(),
            names.encode(),
            self._max_age,
        )
