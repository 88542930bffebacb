"""Which requests may use a session cookie: those that a page of this host has sent on purpose.

Owns: the CSRF token, finding it in a request, and refusing cookies of requests from other sites.
Leaves to others: the session (token), refusing all requests of other sites that change something (gateway.sites).

A token is signed and bound to the id of one session (a signed double submit): a page reads it from its cookie and
sends it back in X-CSRF-Token, or in the field csrf_token of an HTML form. A page of another site can do neither.
"""

from __future__ import annotations

import hmac
from typing import Final
from urllib.parse import parse_qsl

from aiohttp import hdrs
from multidict import istr

from mesh.errors import BadRequest
from mesh.gateway.edge.auth.sessions.keys import KeyRing
from mesh.gateway.media import essence
from mesh.gateway.request import RawRequest, Request
from mesh.gateway.sites import SEC_FETCH_SITE, is_same_origin

#: Part of each signature.
PURPOSE: Final = b"mesh csrf 1"
HEADER: Final = istr("X-CSRF-Token")
FIELD: Final = "csrf_token"

_FORM: Final = "application/x-www-form-urlencoded"
_MODE: Final = istr("Sec-Fetch-Mode")
_DEST: Final = istr("Sec-Fetch-Dest")
_OWN: Final = frozenset({"same-origin", "none"})
#: The most fields of a form in which the token is looked for.
_MOST_FIELDS: Final = 1000


class CsrfRefused(BadRequest):
    """The request changes something with a session cookie, and has not the CSRF token of that session. A page sends it
    in the header field X-CSRF-Token, an HTML form in its field csrf_token: see docs/sessions.md."""

    code = "csrf"
    status = 403


class CsrfTokens:
    """Makes and checks the tokens of sessions."""

    def __init__(self, ring: KeyRing) -> None:
        self._ring = ring

    def token(self, session_id: bytes) -> str:
        """The token of a session."""
        return self._ring.sign(session_id)

    async def check(self, request: Request, session_id: bytes) -> None:
        """Check that a request has the token of this session.

        Raises:
            CsrfRefused: it has none, or another one.
            MeshError: the body of a form cannot be read; see Bodies.read.
        """
        told = request.raw.headers.getall(HEADER, ())
        if not told and essence(request.raw.headers.get(hdrs.CONTENT_TYPE, "")) == _FORM:
            told = await _fields(request)
        if not told:
            raise CsrfRefused(f"the request has no {HEADER} header, nor a form field {FIELD}")
        # With several values, one of them is not the page's.
        content = self._ring.content(told[0]) if len(told) == 1 and len(told[0]) <= 256 else None
        if content is None or not hmac.compare_digest(content, session_id):
            raise CsrfRefused(f"the {HEADER} of the request is not that of its session; read the cookie again")


async def _fields(request: Request) -> list[str]:
    """The values of the token's field in an HTML form. The body stays there for the handler."""
    body = request.early_body = await request.front.bodies.read(request, request.remaining_s)
    try:
        pairs = parse_qsl(body.decode("ascii"), keep_blank_values=True, max_num_fields=_MOST_FIELDS)
    except ValueError:
        return []
    return [value for name, value in pairs if name == FIELD]


def comes_from_here(raw: RawRequest) -> bool:
    """Whether the session cookie of a request counts: a page of this host sent it, or a user followed a link.

    Browsers attach cookies to some requests of other sites in spite of SameSite, such as those of neighbouring hosts
    (`same-site`). A link of another site may be followed with the session, because GET changes nothing, and that site
    cannot see the answer.
    """
    headers = raw.headers
    origins = headers.getall(hdrs.ORIGIN, ())
    if not _OWN.issuperset(headers.getall(SEC_FETCH_SITE, ())):
        return (
            not origins
            and raw.method in ("GET", "HEAD")
            and headers.getall(_MODE, ()) == ["navigate"]
            and headers.getall(_DEST, ()) == ["document"]
        )
    return all(is_same_origin(origin, headers.get(hdrs.HOST, "")) for origin in origins)
