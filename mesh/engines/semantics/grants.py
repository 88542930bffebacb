"""Locks: extending a grant, and the errors of those that another owner holds or that were lost. Pure.

Owns: these rules. Leaves to others: storing grants, waiting owners and tokens (engines).
"""

from __future__ import annotations

from mesh.errors import LockLost, LockTaken
from mesh.locks.contract import Grant


def extended(held: Grant, wall: float, ttl_s: float) -> Grant:
    """The same grant, until `ttl_s` from now; never shorter than before."""
    return Grant(held.name, held.owner, held.token, max(held.until_at, wall + ttl_s))


def taken(name: str, held: Grant | None, wait_s: float = 0.0) -> LockTaken:
    """The error of a lock that another owner held during the whole wait."""
    waited = f" (waited {wait_s:g} s)" if wait_s else ""
    if held is None:
        return LockTaken(f"lock {name!r}: other owners wait for it{waited}", details={"name": name, "owner": ""})
    return LockTaken(
        f"lock {name!r}: {held.owner} holds it{waited}",
        details={"name": name, "owner": held.owner, "until_at": held.until_at},
    )


def lost(name: str, owner: str, held: Grant | None) -> LockLost:
    """The error of an owner that no longer holds a lock."""
    now = f"{held.owner} holds it" if held is not None else "it expired, or it was released"
    return LockLost(f"lock {name!r} is no longer held by {owner}: {now}", details={"name": name})
