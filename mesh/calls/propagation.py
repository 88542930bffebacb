"""What travels with all work that some work causes: tenant, principal, W3C baggage and tracestate.

Owns: the names of these values in the metadata of messages, their limits, and taking them out of received metadata.
Leaves to others: the context that holds them (context), when they are attached (client, events, tasks), the formats of
the W3C headers (telemetry.baggage). The traceparent has a field of its own in every message.

A context holds its values as one map, or None when it has none, so that work without them pays one comparison. The map
is never changed: a changed value makes a new map, because messages that wait to be sent refer to the old one.

The receiver trusts these values as it trusts the rest of a message: a process that may call a method can also name any
principal. docs/security.md says which processes may call.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from mesh.errors import BadArguments
from mesh.telemetry.baggage import accept_baggage, accept_tracestate

TRACESTATE: Final = "tracestate"
BAGGAGE: Final = "baggage"
TENANT: Final = "mesh.tenant"
PRINCIPAL: Final = "mesh.principal"

#: The longest tenant and principal, in characters.
MAX_NAME: Final = 256

Values = Mapping[str, str]


def read_name(what: str, value: Any) -> str:
    """A tenant or principal that code sets.

    Raises:
        BadArguments: it is not printable text of at most MAX_NAME characters.
    """
    if not isinstance(value, str) or len(value) > MAX_NAME or not value.isprintable():
        raise BadArguments(f"{what}: {value!r} is not printable text of at most {MAX_NAME} characters"[:400])
    return value


def accept_name(value: str) -> str:
    """A received tenant or principal, or "" when it is not valid."""
    return value if len(value) <= MAX_NAME and value.isprintable() else ""


_ACCEPT: Final = (
    (TENANT, accept_name),
    (PRINCIPAL, accept_name),
    (BAGGAGE, accept_baggage),
    (TRACESTATE, accept_tracestate),
)
_NAMES: Final = frozenset(name for name, _ in _ACCEPT)


def take(meta: dict[str, str]) -> dict[str, str] | None:
    """Remove the values from received metadata, and return the valid ones; None when there are none."""
    found = None
    if not _NAMES.isdisjoint(meta):
        for name, accept in _ACCEPT:
            value = meta.pop(name, "")
            if value and type(value) is str and (value := accept(value)):
                found = found or {}
                found[name] = value
    return found


def tenant_of(meta: Mapping[str, str] | None) -> str:
    """The tenant in the metadata of a message to be sent; "" for none."""
    return meta.get(TENANT, "") if meta else ""


def split(meta: dict[str, str]) -> tuple[dict[str, str], dict[str, str] | None]:
    """(the user's metadata, the values). `meta` itself is not changed; it is returned when it has no values."""
    if _NAMES.isdisjoint(meta):
        return meta, None
    own = dict(meta)
    found = take(own)
    return own, found


def replaced(values: Values | None, name: str, value: str) -> dict[str, str] | None:
    """The map with one value set, or removed when it is "". None when nothing is left."""
    new = dict(values or ())
    if value:
        new[name] = value
    else:
        new.pop(name, None)
    return new or None
