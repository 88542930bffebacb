"""The contract of locks: named leases, each grant with a fencing token that only grows.

Owns: the data types and the Protocol that every engine implements.
Leaves to others: renewing a held lock (lock), storing (engines).
"""

from __future__ import annotations

from typing import Protocol

import msgspec


class Grant(msgspec.Struct, array_like=True, frozen=True):
    """A lock that is held.

    Attributes:
        owner: identifies the holder; unique for each acquisition.
        token: the fencing token: larger than that of every earlier grant of this name, for ever.
        until_at: when the grant ends, by the engine's wall clock; no other owner gets the lock before.
    """

    name: str
    owner: str
    token: int
    until_at: float


class Locks(Protocol):
    """The locks of an engine. tests/contract/test_locks.py checks these promises of every engine:

    - At most one owner at a time holds a name, across any restart of the engine.
    - Waiting owners get the lock in the order of their requests; a later request never overtakes an earlier one. The
      time to live begins with the grant.
    - A cancelled `acquire` leaves the queue and holds nothing.
    """

    async def acquire(self, name: str, owner: str, *, ttl_s: float, wait_s: float, timeout_s: float) -> Grant:
        """Acquire the lock for `ttl_s`, waiting at most `wait_s`. For its present owner, extend the same grant.

        Raises:
            LockTaken: another owner, named in `details["owner"]`, held it during the whole wait.
        """

    async def renew(self, name: str, owner: str, *, ttl_s: float, timeout_s: float) -> Grant:
        """Extend the grant; never shorten it.

        Raises:
            LockLost: this owner no longer holds the lock: the grant expired or another owner has it.
        """

    async def release(self, name: str, owner: str, *, timeout_s: float) -> bool:
        """Release the lock. Return whether this owner held it."""

    async def locks(self, *, timeout_s: float) -> list[Grant]:
        """The locks that are held now, sorted by name."""
