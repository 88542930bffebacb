"""Choosing a content coding by Accept-Encoding. Pure. Source: RFC 9110, section 12.5.3."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Final, NamedTuple

_ELEMENT: Final = re.compile(
    r"\s*([!#$%&'*+\-.^_`|~0-9A-Za-z]{1,40})\s*(?:;\s*q\s*=\s*(0(?:\.\d{0,3})?|1(?:\.0{0,3})?)\s*)?"
)

#: Longer headers are not read: no client sends one.
_LONGEST: Final = 500
_ALIASES: Final = {"x-gzip": "gzip"}


class Choice(NamedTuple):
    """Attributes:
    coding: the coding to use; "" for none.
    plain: whether the client takes the answer without a coding.
    """

    coding: str
    plain: bool


NOTHING: Final = Choice("", True)


def _read(header: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for part in header.split(","):
        element = _ELEMENT.fullmatch(part)
        if element is not None:
            name = element[1].lower()
            found[_ALIASES.get(name, name)] = float(element[2]) if element[2] else 1.0
    return found


def choose(header: str, offered: Sequence[str]) -> Choice:
    """The coding with the highest quality; of equal ones the first that is offered.

    An element that is malformed is ignored. A coding that the client ranks below `identity` is not used.

    Args:
        header: the value of Accept-Encoding; all lines of it, joined by commas.
        offered: codings, the preferred one first.
    """
    if not header or len(header) > _LONGEST:
        return NOTHING
    return _choose(header, tuple(offered))


@lru_cache(1024)
def _choose(header: str, offered: tuple[str, ...]) -> Choice:
    wanted = _read(header)
    others = wanted.get("*")
    best, quality = "", 0.0
    for coding in offered:
        each = wanted.get(coding, others if others is not None else 0.0)
        if each > quality:
            best, quality = coding, each
    identity = wanted.get("identity", others if others == 0.0 else None)
    plain = identity != 0.0
    if best and identity is not None and identity > quality:
        best = ""
    return Choice(best, plain)
