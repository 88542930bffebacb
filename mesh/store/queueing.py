"""Who waits for which lock, first come first served.

Owns: the line in front of each lock, and giving it to the next one in the turn in which it is free.
Leaves to others: who holds a lock (the core), when turns happen (turns), callers that leave (service).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Protocol

from mesh.calls.expiry import Expiries
from mesh.clock import Clock
from mesh.errors import LockTaken, MeshError
from mesh.locks.contract import Grant


class Acquires(Protocol):
    """What is needed of the core's Turn."""

    def acquire(self, name: str, owner: str, ttl_s: float) -> Grant: ...


class Waiter:
    """One who waits."""

    __slots__ = ("answer", "grant", "name", "owner", "slot", "taken", "ttl_s")

    def __init__(self, name: str, owner: str, ttl_s: float, taken: LockTaken, answer: asyncio.Future[Grant]) -> None:
        self.name = name
        self.owner = owner
        self.ttl_s = ttl_s
        self.answer = answer
        #: Who has had it last.
        self.taken = taken
        #: Given to it in the turn that runs; nothing before that has ended well.
        self.grant: Grant | None = None
        self.slot = 0

    def expire(self) -> None:
        """It has waited as long as it would."""
        if not self.answer.done():
            self.answer.set_exception(self.taken)


class LockQueues:
    """Everybody who waits for a lock."""

    def __init__(self, clock: Clock) -> None:
        self._expiries = Expiries(clock)
        self._lines: dict[str, dict[str, Waiter]] = {}
        # Locks with a line -> when the one who has it must have renewed it, wall clock.
        self._until: dict[str, float] = {}
        self._granted: list[Waiter] = []

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def waits(self, name: str, owner: str) -> bool:
        """Whether somebody else waits for it."""
        line = self._lines.get(name)
        return line is not None and any(other != owner for other in line)

    def enter(self, name: str, owner: str, ttl_s: float, taken: LockTaken, give_up_at: float) -> Waiter:
        """Stand in line; who asked before keeps the place.

        Args:
            taken: as the core refused it; `details["until_at"]` says when it will be free at the latest, wall clock.
            give_up_at: when to wait no longer, by the loop's clock.
        """
        waiter = Waiter(name, owner, ttl_s, taken, asyncio.get_running_loop().create_future())
        line = self._lines.setdefault(name, {})
        before = line.get(owner)
        line[owner] = waiter
        if before is not None:
            self._expiries.forget(before)
            if not before.answer.done():
                before.answer.cancel()
        self._until[name] = float(taken.details["until_at"])
        self._expiries.watch(waiter, give_up_at)
        return waiter

    def leave(self, waiter: Waiter) -> None:
        """It waits no longer; harmless when it has been served."""
        self._expiries.forget(waiter)
        line = self._lines.get(waiter.name)
        if line is not None and line.get(waiter.owner) is waiter:
            del line[waiter.owner]
            if not line:
                del self._lines[waiter.name]
                self._until.pop(waiter.name, None)

    def due(self, freed: Iterable[str], wall: float) -> list[str]:
        """Locks that might go to somebody who waits: freed ones, and those that were not renewed in time."""
        if not self._lines:
            return []
        due = [name for name, until_at in self._until.items() if until_at <= wall]
        return [*due, *(name for name in freed if name in self._lines and name not in due)]

    def due_at(self) -> float | None:
        """When a lock will not have been renewed in time, wall clock."""
        return min(self._until.values(), default=None)

    def serve(self, turn: Acquires, names: Iterable[str]) -> None:
        """Give each of these locks to the first who waits for it. `committed` or `undone` follows."""
        for name in names:
            for waiter in tuple(self._lines.get(name, {}).values()):
                if waiter.answer.done():
                    continue
                try:
                    waiter.grant = turn.acquire(name, waiter.owner, waiter.ttl_s)
                except LockTaken as taken:
                    waiter.taken = taken
                    self._until[name] = float(taken.details["until_at"])
                else:
                    self._granted.append(waiter)
                    self._until[name] = waiter.grant.until_at
                break

    def committed(self) -> None:
        """The turn is durable: tell those who were served."""
        for waiter in self._granted:
            if waiter.grant is not None and not waiter.answer.done():
                waiter.answer.set_result(waiter.grant)
            self.leave(waiter)
        self._granted.clear()

    def undone(self) -> None:
        """The turn has changed nothing; they wait on."""
        for waiter in self._granted:
            waiter.grant = None
            self._until[waiter.name] = 0.0
        self._granted.clear()

    def end(self, error: MeshError) -> None:
        """Nobody is served any more: tell everybody."""
        for line in self._lines.values():
            for waiter in line.values():
                if not waiter.answer.done():
                    waiter.answer.set_exception(error)
        self._expiries.close()
