"""Every key with its value and its origin, as `mesh config` lists it.

Owns: the rows. Leaves to others: reading the settings and recording their origins (config.load).
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from typing import Any, NamedTuple

from mesh.config.entries import ENTRIES, POLICY, SERVICE, Entry, entries_of
from mesh.config.secrets import Secret, hidden
from mesh.config.settings import Settings


class Origin(NamedTuple):
    """One value and its origin.

    Attributes:
        key: as in the file, dotted: "gateway.port".
        value: in the syntax of the file: "10s", 8080, ["ipc://…"].
        origin: "default", "mesh.toml:14", "MESH_GATEWAY_PORT" or "--port".
        about: a one-line description of the key.
    """

    key: str
    value: Any
    origin: str
    about: str


def listed(settings: Settings, sources: Mapping[str, str]) -> list[Origin]:
    """All keys in the order of the tree.

    Args:
        sources: dotted key -> where its value comes from; without the keys that have their defaults.
    """
    rows: list[Origin] = []

    def add(dotted: str, value: Any, shown: Any, about: str) -> None:
        origin = sources.get(dotted, "default")
        if isinstance(value, Secret):
            origin = f"{origin}, {value.reference}"
        rows.append(Origin(dotted, shown, origin, about))

    def add_all(prefix: str, entries: Mapping[str, Entry], table: Any) -> None:
        for key, entry in entries.items():
            value = getattr(table, entry.attribute)
            add(f"{prefix}.{key}", value, entry.kind.show(value), entry.about)

    for name, entries in ENTRIES.items():
        add_all(name, entries, attrgetter(name)(settings))
    for engine, its in settings.engines.own.items():
        add_all(f"engines.{engine}", entries_of(type(its)), its)
    for service, own in settings.services.items():
        add_all(f"services.{service}", SERVICE, own)
        for key, value in own.config.items():
            add(f"services.{service}.config.{key}", value, hidden(value), "a setting of the service itself")
    for pattern, policy in settings.policies.items():
        for key, entry in POLICY.items():
            value = getattr(policy, entry.attribute)
            if value is not None:
                add(f"policies.{pattern}.{key}", value, entry.kind.show(value), entry.about)
    if settings.access is None:
        rows.append(
            Origin("access.allow", "every caller may call everything", "default", "which callers may call what")
        )
    else:
        if not settings.access.allow:
            # An empty [access] denies everything, and no other row would show this.
            origin = sources.get("access", "default")
            rows.append(Origin("access.allow", "no caller may call anything", origin, "which callers may call what"))
        for number, rule in enumerate(settings.access.allow):
            rows.append(Origin(f"access.allow.{number}", str(rule), rule.place, "which callers may call what"))
        operators = ", ".join(settings.access.operators) or "none"
        rows.append(Origin("access.operators", operators, sources.get("access", "default"), "keys with all rights"))
        asserting = ", ".join(settings.access.asserting) or "none"
        rows.append(
            Origin("access.assert", asserting, sources.get("access", "default"), "keys that may assert principals")
        )
        for number, served in enumerate(settings.access.serve):
            rows.append(
                Origin(f"access.serve.{number}", str(served), served.place, "which workers may run which service")
            )
    return rows
