"""Locks in dicts: their holders, their waiting owners, and their fencing tokens.

Owns: when a grant is made, for how long, and the order of waiting owners.
Leaves to others: awaiting a grant (engine: a waiter has a future), renewing a held lock (mesh.locks).
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from mesh.clock import Clock
from mesh.engines.memory.agenda import Agenda
from mesh.engines.semantics.grants import extended, lost
from mesh.engines.semantics.validation import check_lock
from mesh.locks.contract import Grant


class Waiter:
    """A waiting request in the queue of a lock; `granted` gets the grant."""

    __slots__ = ("granted", "owner", "ttl_s")

    def __init__(self, owner: str, ttl_s: float) -> None:
        self.owner = owner
        self.ttl_s = ttl_s
        self.granted: asyncio.Future[Grant] = asyncio.get_running_loop().create_future()


class Locks:
    """All locks. A grant ends at its `until_at`, even if it has not been removed yet."""

    def __init__(self, clock: Clock, agenda: Agenda) -> None:
        self._clock: Final = clock
        self._agenda: Final = agenda
        self._held: dict[str, Grant] = {}
        self._lines: dict[str, deque[Waiter]] = {}
        # Kept for ever: a token must be larger than that of every earlier grant.
        self._tokens: dict[str, int] = {}

    def holder(self, name: str) -> Grant | None:
        """The present grant of a lock, or None."""
        grant = self._held.get(name)
        return grant if grant is not None and grant.until_at > self._clock.wall() else None

    def take(self, name: str, owner: str, ttl_s: float) -> Grant | None:
        """A grant if possible now: the lock is free and no request waits, or this owner holds it; else None."""
        check_lock(name, owner, ttl_s)
        held = self.holder(name)
        if held is not None:
            return self._extend(held, ttl_s) if held.owner == owner else None
        return None if self._lines.get(name) else self._grant(name, owner, ttl_s)

    def wait(self, name: str, owner: str, ttl_s: float) -> Waiter:
        """Join the end of the queue."""
        waiter = Waiter(owner, ttl_s)
        line = self._lines.setdefault(name, deque())
        line.append(waiter)
        if len(line) == 1:
            self._look_at_expiry(name)
        return waiter

    def give_up(self, name: str, waiter: Waiter) -> None:
        """Leave the queue; a grant that came at the last moment is released."""
        line = self._lines.get(name)
        if line is not None and waiter in line:
            line.remove(waiter)
            if not line:
                del self._lines[name]
        elif waiter.granted.done() and not waiter.granted.cancelled():
            self.release(name, waiter.owner)

    def renew(self, name: str, owner: str, ttl_s: float) -> Grant:
        """Raises:
        LockLost: this owner no longer holds the lock.
        """
        check_lock(name, owner, ttl_s)
        held = self.holder(name)
        if held is None or held.owner != owner:
            raise lost(name, owner, held)
        return self._extend(held, ttl_s)

    def release(self, name: str, owner: str) -> bool:
        """Release the lock and grant it to the next in the queue. Return whether this owner held it."""
        held = self.holder(name)
        if held is None or held.owner != owner:
            return False
        del self._held[name]
        self._serve(name)
        return True

    def all(self) -> list[Grant]:
        """The present grants, sorted by name."""
        return [grant for name in sorted(self._held) if (grant := self.holder(name)) is not None]

    def sweep(self) -> None:
        """Delete expired grants; their tokens stay."""
        for name in [name for name in self._held if self.holder(name) is None and name not in self._lines]:
            del self._held[name]

    # --- giving ------------------------------------------------------------------------------------------

    def _grant(self, name: str, owner: str, ttl_s: float) -> Grant:
        token = self._tokens[name] = self._tokens.get(name, 0) + 1
        grant = self._held[name] = Grant(name, owner, token, self._clock.wall() + ttl_s)
        return grant

    def _extend(self, held: Grant, ttl_s: float) -> Grant:
        grant = self._held[held.name] = extended(held, self._clock.wall(), ttl_s)
        return grant

    def _serve(self, name: str) -> None:
        """Grant a free lock to the request that has waited longest."""
        line = self._lines.get(name)
        while line and self.holder(name) is None:
            waiter = line.popleft()
            if not waiter.granted.done():
                waiter.granted.set_result(self._grant(name, waiter.owner, waiter.ttl_s))
        if line:
            self._look_at_expiry(name)
        else:
            self._lines.pop(name, None)

    def _look_at_expiry(self, name: str) -> None:
        """Schedule a look at the queue for the end of the present grant, which may be extended until then."""
        held = self._held.get(name)
        if held is not None:
            self._agenda.at_wall(held.until_at, self._serve, name)
