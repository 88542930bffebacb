"""What an engine does with locks: named leases, each grant with a number that only grows.

Owns: the shapes and the Protocol that every engine fulfils.
Leaves to others: renewing while it is held (lock), storing (engines).
"""

from __future__ import annotations

from typing import Protocol

import msgspec


class Grant(msgspec.Struct, array_like=True, frozen=True):
    """A lock that is held.

    Attributes:
        owner: who holds it; unique for each acquisition.
        token: the fencing token: larger than that of every earlier grant of this name, for ever.
        until_at: wall clock of the engine; nobody else gets it before.
    """

    name: str
    owner: str
    token: int
    until_at: float


class Locks(Protocol):
    """The locks of an engine; tests/contract/test_locks.py holds it to this.

    - At most one owner at a time holds a name, through any restart of the engine.
    - Those who wait get it in the order in which they came; nobody who comes later passes by them, and the time to live
      begins with the grant.
    - Whose `acquire` is cancelled waits no more, and holds nothing.
    """

    async def acquire(self, name: str, owner: str, *, ttl_s: float, wait_s: float, timeout_s: float) -> Grant:
        """Hold it for `ttl_s`, after waiting at most `wait_s`. An owner that has it gets the same grant, for longer.

        Raises:
            LockTaken: somebody else held it all the time; `details["owner"]` says who.
        """

    async def renew(self, name: str, owner: str, *, ttl_s: float, timeout_s: float) -> Grant:
        """Hold it for longer; never for less.

        Raises:
            LockLost: it is not this owner's any more: somebody has it, or its time was over.
        """

    async def release(self, name: str, owner: str, *, timeout_s: float) -> bool:
        """Whether it was this owner's."""

    async def locks(self, *, timeout_s: float) -> list[Grant]:
        """What is held now, by name."""
