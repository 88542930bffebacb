"""The header fields in which proxies report the client: X-Forwarded-… and Forwarded (RFC 7239).

Owns: their syntax. Pure.
Leaves to others: which proxies are trusted (clients).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

_TOKEN: Final = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_PAIR: Final = re.compile(rf'\s*({_TOKEN})=({_TOKEN}|"(?:[^"\\]|\\.)*")\s*(;|,|$)')
_EMPTY: Final = re.compile(r"\s*(,|$)")
_NODE: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[0-9.]+)(?::\d{1,5})?")


class Hop(NamedTuple):
    """One element: what one proxy reports.

    Attributes:
        client: the address of its peer; "" when it does not tell one.
        proto, host: the scheme and the Host header of the request that it received; "" when it does not tell.
    """

    client: str
    proto: str = ""
    host: str = ""


def read_forwarded(lines: Iterable[str]) -> list[Hop]:
    """The elements of Forwarded, the nearest proxy last; [] when the field is malformed.

    Example:
        >>> read_forwarded(['for="[2001:db8::1]:4711";proto=https', "for=10.0.0.5"])
        [Hop(client='2001:db8::1', proto='https', host=''), Hop(client='10.0.0.5', proto='', host='')]
    """
    text, at = ",".join(lines), 0
    hops: list[Hop] = []
    pairs: dict[str, str] = {}
    while at < len(text):
        found = _PAIR.match(text, at)
        if found is None:
            # An empty list element is allowed (RFC 9110, section 5.6.1).
            empty = _EMPTY.match(text, at)
            if empty is None or pairs:
                return []
            at = max(empty.end(), at + 1)
            continue
        name, value = found[1].lower(), found[2]
        if name in pairs:
            return []
        pairs[name] = re.sub(r"\\(.)", r"\1", value[1:-1]) if value.startswith('"') else value
        at = found.end()
        if found[3] != ";":
            hops.append(_hop(pairs))
            pairs = {}
        elif at >= len(text):
            return []
    return hops


def _hop(pairs: dict[str, str]) -> Hop:
    return Hop(read_node(pairs.get("for", "")), pairs.get("proto", "").lower(), pairs.get("host", ""))


def read_node(text: str) -> str:
    """The address of `192.0.2.1:80` or `[2001:db8::1]:80`; "" for "unknown", a name, or anything else."""
    found = _NODE.fullmatch(text)
    return found[1].removeprefix("[").removesuffix("]") if found else ""
