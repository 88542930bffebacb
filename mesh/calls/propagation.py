"""What travels with all work that some work causes: tenant, principal, roles, scopes, W3C baggage and tracestate.

Owns: the names of these values in the metadata of messages, their limits, and taking them out of received metadata.
Leaves to others: the context that holds them (context), when they are attached (client, events, tasks), the formats of
the W3C headers (telemetry.baggage). The traceparent has a field of its own in every message.

A context holds its values as one map, or None when it has none, so that work without them pays one comparison. The map
is never changed: a changed value makes a new map, because messages that wait to be sent refer to the old one.

Roles and scopes belong to the principal: they are dropped where there is none, and removed when it changes. A process
that may call a method can also name any principal. Under [access], the values of a process that may not assert
principals are marked UNVERIFIED: the mark is inherited like the values, so that no later process verifies them by
passing them on. docs/security.md, "Users and their roles", has the whole model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, Final

from mesh.errors import BadArguments
from mesh.telemetry.baggage import accept_baggage, accept_tracestate

TRACESTATE: Final = "tracestate"
BAGGAGE: Final = "baggage"
TENANT: Final = "mesh.tenant"
PRINCIPAL: Final = "mesh.principal"
ROLES: Final = "mesh.roles"
SCOPES: Final = "mesh.scopes"
#: The mark of a principal that a process named which may not assert one. Its value is "1".
UNVERIFIED: Final = "mesh.unverified"

#: What belongs to a principal, and does not exist without one.
OF_PRINCIPAL: Final = (ROLES, SCOPES, UNVERIFIED)

#: The longest tenant and principal, in characters.
MAX_NAME: Final = 256
#: The longest list of roles or scopes, in characters. Both, with the longest baggage, fit in the metadata of a message.
MAX_LIST: Final = 2048

_NAME: Final = re.compile(r"[!-~]{1,128}")
_LIST: Final = re.compile(r"[!-~]{1,128}(?: [!-~]{1,128})*")

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


def read_names(what: str, names: Iterable[str]) -> str:
    """Roles or scopes that code sets, as they are sent: sorted, each once, a space between them.

    Raises:
        BadArguments: `names` is no collection of names of 1 to 128 printable ASCII characters without spaces, or they
            are longer than MAX_LIST together.
    """
    try:
        # A single str is refused: its characters would be taken for names.
        found = [""] if isinstance(names, str) else sorted(set(names))
        text = " ".join(found)
    except TypeError:
        found, text = [""], ""
    if len(text) > MAX_LIST or not all(_NAME.fullmatch(name) for name in found):
        raise BadArguments(
            f"{what}: {names!r:.200} is not a collection of names of printable ASCII characters without spaces, each "
            f"at most 128 and all together at most {MAX_LIST} characters long"
        )
    return text


@lru_cache(1024)
def fit_names(names: frozenset[str]) -> str | None:
    """Roles or scopes that another system has named, as they are sent: without those that are not valid names.

    None when they are longer than MAX_LIST together, because only their source can know which of them matter.
    """
    text = " ".join(sorted(name for name in names if _NAME.fullmatch(name)))
    return text if len(text) <= MAX_LIST else None


@lru_cache(256)
def accept_names(value: str) -> str:
    """Received roles or scopes, or "" when they are not valid."""
    return value if len(value) <= MAX_LIST and _LIST.fullmatch(value) else ""


_ACCEPT: Final = (
    (TENANT, accept_name),
    (PRINCIPAL, accept_name),
    (ROLES, accept_names),
    (SCOPES, accept_names),
    (UNVERIFIED, lambda value: "1"),
    (BAGGAGE, accept_baggage),
    (TRACESTATE, accept_tracestate),
)
_NAMES: Final = frozenset(name for name, _ in _ACCEPT)


def take(meta: dict[str, str]) -> dict[str, str] | None:
    """Remove the values from received metadata, and return the valid ones; None when there are none."""
    found: dict[str, str] | None = None
    if not _NAMES.isdisjoint(meta):
        for name, accept in _ACCEPT:
            value = meta.pop(name, "")
            if value and type(value) is str and (value := accept(value)):
                found = found or {}
                found[name] = value
        if found and PRINCIPAL not in found:
            found = without_principal(found)
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


def without_principal(values: Values) -> dict[str, str] | None:
    """The map without the principal and what belongs to it. None when nothing is left."""
    return {name: value for name, value in values.items() if name != PRINCIPAL and name not in OF_PRINCIPAL} or None


def unverified(values: Values) -> Values:
    """The map with the mark UNVERIFIED; the same map when it has no principal."""
    return {**values, UNVERIFIED: "1"} if PRINCIPAL in values else values


def same_principal(one: Values | None, other: Values) -> bool:
    """Whether both maps have the same principal, with the same roles and scopes."""
    return one is not None and all(one.get(name) == other.get(name) for name in (PRINCIPAL, ROLES, SCOPES))


def asserted(meta: Mapping[str, str] | None) -> tuple[str, str]:
    """(principal, roles) of received metadata; ("", "") when it has no principal, or one that is marked UNVERIFIED.

    Whether the sender may assert them is for the caller of this function to decide.
    """
    if not meta or PRINCIPAL not in meta or UNVERIFIED in meta:
        return "", ""
    principal, roles = meta[PRINCIPAL], meta.get(ROLES, "")
    if type(principal) is not str or not (principal := accept_name(principal)):
        return "", ""
    return principal, accept_names(roles) if type(roles) is str else ""


def replaced(values: Values | None, name: str, value: str) -> dict[str, str] | None:
    """The map with one value set, or removed when it is "". None when nothing is left."""
    new = dict(values or ())
    if value:
        new[name] = value
    else:
        new.pop(name, None)
    return new or None
