"""The keys of every table, and how each is read and shown: what the tree of settings says of itself.

Owns: finding that in the annotations.
Leaves to others: the tree (config.settings), how a value is written (config.values).
"""

from __future__ import annotations

from typing import Final, NamedTuple, get_type_hints

import msgspec

from mesh.config.settings import ServiceSettings, Settings
from mesh.config.values import Kind


class Entry(NamedTuple):
    """One key.

    Attributes:
        attribute: what the table in code calls it: the key with its unit.
        about: what it is for, in a line.
    """

    attribute: str
    kind: Kind
    about: str


def _entries(table: type[msgspec.Struct]) -> dict[str, Entry]:
    hints = get_type_hints(table, include_extras=True)
    found = {}
    for item in msgspec.structs.fields(table):
        meta = getattr(hints[item.name], "__metadata__", None)
        if meta:
            found[item.encode_name] = Entry(item.name, meta[0], meta[1])
    return found


#: Those with a fixed name; [services] and [access] hold what their users name.
TABLES: Final[dict[str, type[msgspec.Struct]]] = {
    name: hint
    for name, hint in get_type_hints(Settings).items()
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct)
}
#: table -> key -> what it is.
ENTRIES: Final = {name: _entries(table) for name, table in TABLES.items()}
#: The keys of each [services.NAME].
SERVICE: Final = _entries(ServiceSettings)


def kind_of(dotted: str) -> Kind:
    """How the value of a key like "links.heartbeat" is written."""
    table, _, key = dotted.partition(".")
    return ENTRIES[table][key].kind
