"""The Content-Type, the Cache-Control and the coding of a file, from its name and the request.

Owns: these tables and rules. Pure.
Leaves to others: opening files (files), answering (mounts.static).
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from mimetypes import MimeTypes
from typing import Final

#: Types of the web that Python's own table lacks, or has only in newer versions. The system's files are not read: a
#: type must not depend on the machine.
_TYPES: Final = {
    ".avif": "image/avif",
    ".cjs": "text/javascript",
    ".css": "text/css",
    ".csv": "text/csv",
    ".gz": "application/gzip",
    ".htm": "text/html",
    ".html": "text/html",
    ".ico": "image/vnd.microsoft.icon",
    ".js": "text/javascript",
    ".json": "application/json",
    ".map": "application/json",
    ".md": "text/markdown",
    ".mjs": "text/javascript",
    ".mp4": "video/mp4",
    ".otf": "font/otf",
    ".pdf": "application/pdf",
    ".svg": "image/svg+xml",
    ".toml": "application/toml",
    ".ttf": "font/ttf",
    ".txt": "text/plain",
    ".wasm": "application/wasm",
    ".webm": "video/webm",
    ".webmanifest": "application/manifest+json",
    ".webp": "image/webp",
    ".woff": "font/woff",
    ".woff2": "font/woff2",
    ".xhtml": "application/xhtml+xml",
    ".xml": "application/xml",
    ".yaml": "application/yaml",
    ".yml": "application/yaml",
}
_PYTHONS: Final = MimeTypes(filenames=())
_BINARY: Final = "application/octet-stream"
_HTML: Final = frozenset({"text/html", "application/xhtml+xml"})

#: Codings of neighbouring files, the preferred one first, with the endings of their names.
CODINGS: Final = (("br", ".br"), ("zstd", ".zst"), ("gzip", ".gz"))

#: A year, the longest that caches honour.
IMMUTABLE: Final = "public, max-age=31536000, immutable"

#: The last part of a name before its extension, in which bundlers put a hash: app.3f2a1b4c.js, index-BQk2pXo1.js.
_HASHED: Final = re.compile(r".+[.-]([A-Za-z0-9_-]{8,64})\.[A-Za-z0-9.]{1,20}")
_HEX: Final = re.compile(r"(?=.*[0-9])(?=.*[a-f])[0-9a-f]{8,64}")
#: Eight characters of base64 or base32, with a capital, and a digit before another character: words end in digits.
_SHORT: Final = re.compile(r"(?=.*[A-Z])(?=.*[0-9][A-Za-z_-])[A-Za-z0-9_-]{8}")


def content_type(name: str) -> str:
    """The Content-Type of a file, text with its charset."""
    ending = name[name.rfind(".") :].lower() if "." in name else ""
    found = _TYPES.get(ending) or _PYTHONS.types_map[True].get(ending, _BINARY)
    if found.startswith("text/") or found in ("application/json", "application/manifest+json", "application/xml"):
        return f"{found}; charset=utf-8"
    return f"{found}; charset=utf-8" if found.endswith("+xml") else found


def is_hashed(name: str) -> bool:
    """Whether a file's name contains a hash of its content, as bundlers write it."""
    found = _HASHED.fullmatch(name)
    if found is None:
        return False
    # A dash may belong to the hash or separate it: index-B-k2pXo1.js.
    candidates = {found[1], found[1].rpartition("-")[2], found[1][-8:]}
    return any(_HEX.fullmatch(each) or _SHORT.fullmatch(each) for each in candidates)


def cache_control(path: str, kind: str, default: str, immutable: list[str] | None) -> str:
    """The Cache-Control of a file.

    Args:
        path: below the directory, "assets/app.js".
        kind: its Content-Type.
        default: for files that may change.
        immutable: patterns of paths that never change; None takes names with a hash.
    """
    if kind.partition(";")[0] in _HTML:
        # It names the files of a release: a cached page would ask for files that are gone.
        return "no-cache"
    if immutable is None:
        return IMMUTABLE if is_hashed(path.rpartition("/")[2]) else default
    return IMMUTABLE if any(fnmatchcase(path, pattern) for pattern in immutable) else default


def accepted_codings(header: str | None) -> list[tuple[str, str]]:
    """The codings of CODINGS that an Accept-Encoding header allows, the preferred one first."""
    if not header:
        return []
    weights: dict[str, float] = {}
    for part in header.lower().split(","):
        name, _, parameters = part.partition(";")
        weight = 1.0
        key, _, value = parameters.strip().partition("=")
        if key.strip() == "q":
            try:
                weight = float(value)
            except ValueError:
                weight = 0.0
        weights[name.strip()] = weight
    rest = weights.get("*", 0.0)
    wanted = [each for each in CODINGS if weights.get(each[0], rest) > 0]
    return sorted(wanted, key=lambda each: -weights.get(each[0], rest))
