"""The keys of every table, and how each is read and shown, taken from the annotations of the settings.

Owns: reading these annotations.
Leaves to others: the tree (config.settings), the syntax of values (config.values).
"""

from __future__ import annotations

from typing import Final, NamedTuple, get_type_hints

import msgspec

from mesh.config.settings import ServiceSettings, Settings
from mesh.config.values import Kind


class Entry(NamedTuple):
    """One key.

    Attributes:
        attribute: name of the attribute in code: the key with its unit.
        kind: how its value is read and shown.
        about: a one-line description.
    """

    attribute: str
    kind: Kind
    about: str


def entries_of(table: type[msgspec.Struct]) -> dict[str, Entry]:
    """The keys of a table: of the attributes whose annotation is Annotated[type, kind, "description"]."""
    hints = get_type_hints(table, include_extras=True)
    found = {}
    for item in msgspec.structs.fields(table):
        meta = getattr(hints[item.name], "__metadata__", None)
        if meta:
            found[item.encode_name] = Entry(item.name, meta[0], meta[1])
    return found


#: The tables with fixed keys. [services] has keys that users choose, and [access] is read by config.access.
TABLES: Final[dict[str, type[msgspec.Struct]]] = {
    name: hint
    for name, hint in get_type_hints(Settings).items()
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct)
}
#: table -> key -> its entry.
ENTRIES: Final = {name: entries_of(table) for name, table in TABLES.items()}
#: The keys of each [services.NAME].
SERVICE: Final = entries_of(ServiceSettings)


def kind_of(dotted: str) -> Kind:
    """The kind of a key such as "links.heartbeat"."""
    table, _, key = dotted.partition(".")
    return ENTRIES[table][key].kind
