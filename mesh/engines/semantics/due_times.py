"""Schedules: declaring them, and advancing their last due time. Pure.

Owns: which `last_at` a declared schedule has, and whether advances may be made together.
Leaves to others: storing (engines), when a schedule is due (schedules.plan).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from mesh.engines.semantics.validation import check_schedule
from mesh.errors import Conflict
from mesh.schedules.contract import Advance, Schedule


def declared(new: Schedule, known: Schedule | None) -> Schedule:
    """A schedule as it is stored when it is declared. Raises: BadRequest: it is invalid."""
    check_schedule(new.name, new.last_at)
    if known is not None and known.plan == new.plan:
        return msgspec.structs.replace(new, last_at=known.last_at)
    return new


def check_advances(advances: Sequence[Advance], find: Callable[[str], Schedule | None]) -> None:
    """Args:
    find: the stored schedule of a name.

    Raises:
        Conflict: the `from_at` of one is no longer the last due time.
        BadRequest: a name or an instant is invalid.
    """
    ahead: dict[str, float] = {}
    for each in advances:
        known = find(each.name)
        last_at = ahead.get(each.name, known.last_at if known is not None else None)
        if last_at != each.from_at:
            stands = "is not declared" if last_at is None else f"was last advanced to {last_at}"
            raise Conflict(
                f"schedule {each.name} {stands}; the advance assumes {each.from_at}", details={"name": each.name}
            )
        check_schedule(each.name, each.to_at)
        ahead[each.name] = each.to_at
