"""The options of [gateway.static]: directories of files behind prefixes of the gateway.

Owns: the keys and their defaults. Leaves to others: serving the files (gateway.mounts.static).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from msgspec import Struct

from mesh.config.prefix_tables import prefixes
from mesh.config.values import FLAG, PATH, Kind, choice, list_of

_DIRECTIVES: Final = re.compile(r"[!-~](?:[ -~]*[!-~])?")

Auth = Literal["", "none", "user"]


def _read_cache(value: Any) -> str:
    if not isinstance(value, str) or _DIRECTIVES.fullmatch(value) is None:
        raise ValueError
    return value


def _read_pattern(value: Any) -> str:
    if not isinstance(value, str) or not value or value.startswith("/"):
        raise ValueError
    return value


CACHE: Final = Kind('a Cache-Control field like "public, max-age=60"', _read_cache)
PATTERNS: Final = list_of(Kind("", _read_pattern), 'patterns like "assets/*"')


def _read_patterns(value: Any) -> list[str] | None:
    return None if value is None else PATTERNS.read(value)


class StaticSettings(Struct, frozen=True, kw_only=True):
    """The directory of one prefix of [gateway.static], and how its files are served."""

    dir: Annotated[Path, PATH, "the directory, relative to the project"]
    spa: Annotated[bool, FLAG, "answer unknown paths with index.html, for requests that accept text/html"] = False
    cache: Annotated[str, CACHE, "Cache-Control of files without a hash in their names; HTML has no-cache"] = "no-cache"
    immutable: Annotated[
        list[str] | None,
        Kind(PATTERNS.wanted, _read_patterns),
        "patterns of files that never change, instead of those with a hash in their names",
    ] = None
    auth: Annotated[Auth, choice("", "none", "user"), 'who may read, as `auth` of a route; "" takes the default'] = ""


STATICS: Final = prefixes(StaticSettings, "dir", 'a table of prefixes like { "/" = "web/dist" }')
