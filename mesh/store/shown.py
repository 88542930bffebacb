"""Converts instants in answers from the store's own time to the present wall clock.

Owns: which fields are instants. Leaves to others: the store's own time (mesh.engines.steady), answering (service).

Unless the wall clock was set, both are the same, and nothing is copied.
"""

from __future__ import annotations

from typing import Final, TypeVar

import msgspec

from mesh.locks.contract import Grant
from mesh.state.contract import Entry
from mesh.tasks.contract import JobInfo

T = TypeVar("T", JobInfo, Grant, Entry)

#: Smaller differences are ignored: below this the clocks have drifted, but the wall clock was not set.
SET_BY_S: Final = 0.5

_INSTANTS: Final[dict[type, tuple[str, ...]]] = {
    JobInfo: ("created_at", "due_at", "finished_at", "ends_at"),
    Grant: ("until_at",),
    Entry: ("expires_at",),
}


def shown(it: T, ahead: float) -> T:
    """The same object with its instants in wall-clock time.

    Args:
        ahead: how far the wall clock is ahead of the store's own time.
    """
    if abs(ahead) < SET_BY_S:
        return it
    moved = {name: at + ahead for name in _INSTANTS[type(it)] if (at := getattr(it, name))}
    return msgspec.structs.replace(it, **moved)
