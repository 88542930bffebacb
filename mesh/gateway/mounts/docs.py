"""The documentation page: Swagger UI on /openapi.json, where users can try calls. Nothing is loaded from elsewhere.

Owns: the page's files, and its headers: security, caching, compression.
Leaves to others: the document that it shows (openapi), the viewer (Swagger UI, of the package in VIEWER).
"""

from __future__ import annotations

import asyncio
import zlib
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from typing import Final

from mesh.errors import UnknownRoute
from mesh.gateway.front import Front
from mesh.gateway.mounts.contract import Mount
from mesh.gateway.reply import NOSNIFF, Reply
from mesh.gateway.request import Request

#: The package that has Swagger UI's files. Of those on PyPI it is the one with a current release and one small
#: dependency; docs/architecture.md, "Libraries", compares them. Its code is not used.
VIEWER: Final = "mkdocs_swagger_ui_tag"


def _viewer_version() -> str:
    try:
        return version(VIEWER)
    except PackageNotFoundError:  # an installation without dependencies; the page reports the missing file
        return "0"


#: The directory of the viewer's files in addresses. A new release has new addresses, so browsers may keep the files.
_DIRECTORY: Final = f"viewer-{_viewer_version()}"

#: Swagger UI sets styles by script, which the policy allows; it needs no inline script and no eval.
_POLICY: Final = (
    b"Content-Security-Policy: default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    b"img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'\r\n"
    b"Referrer-Policy: no-referrer\r\n" + NOSNIFF
)
_CHECKED: Final = b"Cache-Control: no-cache\r\n" + _POLICY
_KEPT: Final = b"Cache-Control: public, max-age=31536000, immutable\r\n" + _POLICY
_GZIP: Final = b"Content-Encoding: gzip\r\nVary: Accept-Encoding\r\n"
_PLAIN: Final = b"Vary: Accept-Encoding\r\n"

_HTML: Final = "text/html; charset=utf-8"
_CSS: Final = "text/css; charset=utf-8"
_SCRIPT: Final = "text/javascript; charset=utf-8"

#: Address → package, file in it, type, and headers.
PAGES: Final = {
    "/docs": ("mesh.gateway", "page/docs.html", _HTML, _CHECKED),
    "/docs/docs.css": ("mesh.gateway", "page/docs.css", _CSS, _CHECKED),
    "/docs/docs.js": ("mesh.gateway", "page/docs.js", _SCRIPT, _CHECKED),
    f"/docs/{_DIRECTORY}/swagger-ui.css": (VIEWER, "swagger-ui/stylesheets/swagger-ui.css", _CSS, _KEPT),
    f"/docs/{_DIRECTORY}/swagger-ui-bundle.js": (VIEWER, "swagger-ui/javascripts/swagger-ui-bundle.js", _SCRIPT, _KEPT),
}

#: Files of at least this size are compressed.
_LARGE_BYTES: Final = 16 * 1024


def mount(_: Front) -> Mount:
    """/docs and its files."""
    return Mount(prefix="/docs", handler=docs_reply)


async def docs_reply(request: Request) -> Reply:
    """One file of the page, compressed when the client accepts that."""
    path = request.path
    if path not in PAGES:
        raise UnknownRoute(f"{path[:200]}: the documentation page has no such file")
    _, _, content_type, headers = PAGES[path]
    # In a thread, as the first request of the viewer compresses 1.5 MB; later ones find the result.
    plain, compressed = await asyncio.to_thread(_contents, path)
    if compressed and _accepts_gzip(request.headers.get("Accept-Encoding", "")):
        return Reply(compressed, content_type, 200, _GZIP + headers)
    return Reply(plain, content_type, 200, _PLAIN + headers if compressed else headers)


@cache
def _contents(path: str) -> tuple[bytes, bytes]:
    """A file, and its gzip form; b"" for a small file."""
    package, name, *_ = PAGES[path]
    plain = files(package).joinpath(name).read_bytes()
    if path == "/docs":
        plain = plain.replace(b"@VIEWER@", _DIRECTORY.encode())
    if len(plain) < _LARGE_BYTES:
        return plain, b""
    packer = zlib.compressobj(wbits=31)
    return plain, packer.compress(plain) + packer.flush()


def _accepts_gzip(header: str) -> bool:
    for each in header.lower().split(","):
        coding, _, quality = each.partition(";")
        if coding.strip() in ("gzip", "*"):
            return quality.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False
