"""Locks in dicts: who holds which, who waits for it, and the numbers that only grow.

Owns: when a grant is given, for how long, and the order of those who wait.
Leaves to others: waking who waits (engine: a waiter is a future), renewing while it is held (mesh.locks).
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from mesh.clock import Clock
from mesh.engines.checks import check_lock
from mesh.engines.memory.agenda import Agenda
from mesh.errors import LockLost, LockTaken
from mesh.locks.contract import Grant


class Waiter:
    """Somebody in the line of a lock; `granted` gets the grant."""

    __slots__ = ("granted", "owner", "ttl_s")

    def __init__(self, owner: str, ttl_s: float) -> None:
        self.owner = owner
        self.ttl_s = ttl_s
        self.granted: asyncio.Future[Grant] = asyncio.get_running_loop().create_future()


class Locks:
    """All locks. A grant is over when its `until_at` has come, whether or not anybody looks."""

    def __init__(self, clock: Clock, agenda: Agenda) -> None:
        self._clock: Final = clock
        self._agenda: Final = agenda
        self._held: dict[str, Grant] = {}
        self._lines: dict[str, deque[Waiter]] = {}
        # Kept for ever: a token must be larger than that of every earlier grant.
        self._tokens: dict[str, int] = {}

    def holder(self, name: str) -> Grant | None:
        """The grant that is in force."""
        grant = self._held.get(name)
        return grant if grant is not None and grant.until_at > self._clock.wall() else None

    def take(self, name: str, owner: str, ttl_s: float) -> Grant | None:
        """A grant, if it can be given now: the lock is free and nobody waits, or it is this owner's."""
        check_lock(name, owner, ttl_s)
        held = self.holder(name)
        if held is not None:
            return self._extend(held, ttl_s) if held.owner == owner else None
        return None if self._lines.get(name) else self._grant(name, owner, ttl_s)

    def wait(self, name: str, owner: str, ttl_s: float) -> Waiter:
        """Join the end of the line."""
        waiter = Waiter(owner, ttl_s)
        line = self._lines.setdefault(name, deque())
        line.append(waiter)
        if len(line) == 1:
            self._look_at_expiry(name)
        return waiter

    def give_up(self, name: str, waiter: Waiter) -> None:
        """Leave the line; a grant that came at the last moment goes to the next."""
        line = self._lines.get(name)
        if line is not None and waiter in line:
            line.remove(waiter)
            if not line:
                del self._lines[name]
        elif waiter.granted.done() and not waiter.granted.cancelled():
            self.release(name, waiter.owner)

    def renew(self, name: str, owner: str, ttl_s: float) -> Grant:
        """Raises:
        LockLost: it is not this owner's any more.
        """
        check_lock(name, owner, ttl_s)
        held = self.holder(name)
        if held is None or held.owner != owner:
            raise LockLost(_lost(name, owner, held))
        return self._extend(held, ttl_s)

    def release(self, name: str, owner: str) -> bool:
        """Whether it was this owner's; then the next in the line has it."""
        held = self.holder(name)
        if held is None or held.owner != owner:
            return False
        del self._held[name]
        self._serve(name)
        return True

    def all(self) -> list[Grant]:
        """Those in force, by name."""
        return [grant for name in sorted(self._held) if (grant := self.holder(name)) is not None]

    def sweep(self) -> None:
        """Forget grants that are over; their tokens stay."""
        for name in [name for name in self._held if self.holder(name) is None and name not in self._lines]:
            del self._held[name]

    # --- giving ------------------------------------------------------------------------------------------

    def _grant(self, name: str, owner: str, ttl_s: float) -> Grant:
        token = self._tokens[name] = self._tokens.get(name, 0) + 1
        grant = self._held[name] = Grant(name, owner, token, self._clock.wall() + ttl_s)
        return grant

    def _extend(self, held: Grant, ttl_s: float) -> Grant:
        until_at = max(held.until_at, self._clock.wall() + ttl_s)
        grant = self._held[held.name] = Grant(held.name, held.owner, held.token, until_at)
        return grant

    def _serve(self, name: str) -> None:
        """Give a free lock to whoever has waited longest."""
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
        """Somebody waits: serve the line when the grant ends. It may have been extended by then."""
        held = self._held.get(name)
        if held is not None:
            self._agenda.at_wall(held.until_at, self._serve, name)


def taken(name: str, held: Grant | None, waited_s: float) -> LockTaken:
    """The error of somebody who did not get it."""
    owner = held.owner if held is not None else ""
    how = f"held it for all of the {waited_s:g} s" if waited_s else "holds it"
    return LockTaken(f"lock {name!r}: {owner or 'somebody else'} {how}", details={"name": name, "owner": owner})


def _lost(name: str, owner: str, held: Grant | None) -> str:
    now = f"{held.owner} has it" if held is not None else "its time was over, or it was released"
    return f"lock {name!r} is not held by {owner} any more: {now}"
