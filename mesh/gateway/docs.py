"""The documentation page: /docs renders /openapi.json, and users can try calls there.

Owns: the page's files and its security headers: no external resources, no inline scripts.
Leaves to others: the document that it shows (openapi); everything that happens in the browser (page/).
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Final

from mesh.gateway.reply import NOSNIFF, Reply

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


def docs_reply(path: str) -> Reply:
    """One file of the page; `path` is a key of PAGES."""
    name, content_type = PAGES[path]
    return Reply(_read(name), content_type, 200, _POLICY)
