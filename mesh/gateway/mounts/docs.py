"""The documentation page: /docs renders /openapi.json, and users can try calls there.

Owns: the page's files and its security headers: no external resources, no inline scripts.
Leaves to others: the document that it shows (openapi); everything that happens in the browser (page/).
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Final

from mesh.errors import UnknownRoute
from mesh.gateway.mounts.contract import Mount
from mesh.gateway.reply import NOSNIFF, Reply
from mesh.gateway.request import Request

if TYPE_CHECKING:
    from mesh.gateway.front import Front

_POLICY: Final = (
    b"Content-Security-Policy: default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    b"img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'\r\n"
    b"Cache-Control: no-cache\r\n" + NOSNIFF
)

#: Address → file below page/, and its type.
PAGES: Final = {
    "/docs": ("docs.html", "text/html; charset=utf-8"),
    "/docs/docs.css": ("docs.css", "text/css; charset=utf-8"),
    "/docs/docs.js": ("docs.js", "text/javascript; charset=utf-8"),
}


@cache
def _read(name: str) -> bytes:
    return (files("mesh.gateway") / "page" / name).read_bytes()


def mount(_: Front) -> Mount:
    """/docs and its files."""
    return Mount(prefix="/docs", handler=docs_reply)


async def docs_reply(request: Request) -> Reply:
    """One file of the page."""
    page = PAGES.get(request.path)
    if page is None:
        raise UnknownRoute(f"{request.path[:200]}: no file of the documentation page")
    name, content_type = page
    return Reply(_read(name), content_type, 200, _POLICY)
