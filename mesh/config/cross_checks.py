"""Cross-checks: settings that are valid alone but contradict each other.

Owns: these rules. Leaves to others: the validity of each value (config.values), reporting all errors (config.load).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from mesh.config import edge_auth_checks, listener_checks
from mesh.config.edge_programs import conflicts
from mesh.config.entries import ENTRIES, kind_of
from mesh.config.settings import Settings

#: (a span, one that must be longer).
_SHORTER: Final = (
    ("discovery.renew", "discovery.lease"),
    ("links.heartbeat", "links.heartbeat_timeout"),
)


class Contradiction(NamedTuple):
    """Two values that contradict each other.

    Attributes:
        keys: the keys that may be wrong, the likelier one first; the error points to the first that is set.
        key: the key that the error names.
        what: what is wrong, for the error.
    """

    keys: tuple[str, ...]
    key: str
    what: str


def contradictions(settings: Settings) -> Iterator[Contradiction]:
    """All contradictions in the settings."""
    spans = {
        "discovery.renew": settings.discovery.renew_s,
        "discovery.lease": settings.discovery.lease_s,
        "links.heartbeat": settings.links.heartbeat_s,
        "links.heartbeat_timeout": settings.links.heartbeat_timeout_s,
    }
    for shorter, longer in _SHORTER:
        if spans[shorter] >= spans[longer]:
            less, more = kind_of(shorter).show(spans[shorter]), kind_of(longer).show(spans[longer])
            yield Contradiction((shorter, longer), shorter, f"{less} must be shorter than {longer}, which is {more}")
    keys = settings.keys
    if keys.secret is not None and keys.dir is None:
        what = "keys.dir is missing: it holds the public keys that are trusted"
        yield Contradiction(("keys.secret",), "keys.secret", what)
    if settings.access is not None and keys.dir is None and settings.mesh.bind.startswith("tcp://"):
        # Over ipc a caller is a process of this user; over tcp without keys any process may claim to be any caller.
        what = 'over tcp, callers are identified by their keys: set keys.dir, or mesh.bind = "ipc"'
        yield Contradiction(("access",), "access", what)
    for key, what in edge_auth_checks.problems(settings):
        table = key.rpartition(".")[0]
        # The key may be one that is missing: then the error points to another one of its table.
        yield Contradiction((key, *(f"{table}.{other}" for other in ENTRIES[table])), key, what)
    for found in listener_checks.contradictions(settings.gateway):
        yield Contradiction(*found)
    for name, service in settings.services.items():
        if 0 < service.maximum < service.minimum:
            key = f"services.{name}.maximum"
            yield Contradiction((key,), key, f"{service.maximum} is less than the minimum of {service.minimum}")
        if 0 < service.memory_bytes <= service.memory_soft_bytes:
            key = f"services.{name}.memory_soft"
            yield Contradiction((key,), key, "it must be less than `memory`, which the worker cannot exceed")
        for part, what in conflicts(name, service):
            yield Contradiction((f"services.{name}.{part}",), f"services.{name}.{part}", what)
