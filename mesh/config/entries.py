"""The keys of every table, and how each is read and shown, taken from the annotations of the settings.

Owns: reading these annotations.
Leaves to others: the tree (config.settings), the syntax of values (config.values).
"""

from __future__ import annotations

from typing import Final, NamedTuple, get_type_hints

import msgspec

from mesh.config.policies import PolicySettings
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
    """The keys of a table: of the attributes with an annotation Annotated[type, kind, "description"]."""
    hints = get_type_hints(table, include_extras=True)
    found = {}
    for item in msgspec.structs.fields(table):
        meta = getattr(hints[item.name], "__metadata__", None)
        if meta:
            found[item.encode_name] = Entry(item.name, meta[0], meta[1])
    return found


def _tables(of: type[msgspec.Struct], prefix: str = "") -> dict[str, type[msgspec.Struct]]:
    found: dict[str, type[msgspec.Struct]] = {}
    for name, hint in get_type_hints(of).items():
        if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
            found[prefix + name] = hint
            found |= _tables(hint, f"{prefix}{name}.")
    return found


#: The tables with fixed keys, those inside of others too: "gateway", "gateway.tls". [services] has keys that users
#: choose, and [access] is read by config.access.
TABLES: Final = _tables(Settings)
#: table -> key -> its entry.
ENTRIES: Final = {name: entries_of(table) for name, table in TABLES.items()}
#: The keys of each [services.NAME], and of each [policies."PATTERN"].
SERVICE: Final = entries_of(ServiceSettings)
POLICY: Final = entries_of(PolicySettings)


def kind_of(dotted: str) -> Kind:
    """The kind of a key such as "links.heartbeat"."""
    table, _, key = dotted.rpartition(".")
    return ENTRIES[table][key].kind


def inner(table: str) -> list[str]:
    """The names of the tables directly inside of a table: ["tls"] of "gateway"."""
    return [name.rpartition(".")[2] for name in TABLES if name.rpartition(".")[0] == table]


def variable_of(table: str, key: str) -> str:
    """The environment variable of a key: MESH_GATEWAY_TLS_FILES."""
    return f"MESH_{table}_{key}".replace(".", "_").upper()
