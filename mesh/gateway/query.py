"""Parses query strings.

Owns: the limit on pairs, and the error for text that is not UTF-8. Pure.
Leaves to others: types and names of the values (binding, mounts).
"""

from __future__ import annotations

from typing import Final
from urllib.parse import parse_qsl

from mesh.errors import BadArguments

#: A query string with more pairs is rejected: parsing it would block the loop.
MOST_PAIRS: Final = 1000


def read_pairs(query: str) -> list[tuple[str, str]]:
    """The names and values of a query string, decoded, in order.

    Raises:
        BadArguments: it is not UTF-8, or has more than MOST_PAIRS values.
    """
    if not query:
        return []
    try:
        query.encode()  # fails for bytes that were not UTF-8, which cannot be passed on
        return parse_qsl(query, keep_blank_values=True, errors="strict", max_num_fields=MOST_PAIRS)
    except ValueError as exc:
        raise BadArguments(
            f"query: is not UTF-8, or holds more than {MOST_PAIRS} values", details={"path": "query"}
        ) from exc


def read_single(query: str) -> dict[str, str]:
    """The values of a query string by name, each name once.

    Raises:
        BadArguments: a name occurs twice, or as for `read_pairs`.
    """
    found: dict[str, str] = {}
    for name, value in read_pairs(query):
        if name in found:
            raise BadArguments(f"query.{name}: is given more than once", details={"path": f"query.{name}"})
        found[name] = value
    return found
