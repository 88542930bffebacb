"""The queues of callers that wait for locks, first come, first served.

Owns: the queue of each lock, and granting it to the next caller in the transaction in which it is free.
Leaves to others: the holders of locks (the core), when transactions run (turns), callers that leave (service).
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
    """The method of the core's Turn that is used here."""

    def acquire(self, name: str, owner: str, ttl_s: float) -> Grant: ...


class Waiter:
    """One waiting request."""

    __slots__ = ("answer", "grant", "name", "owner", "slot", "taken", "ttl_s")

    def __init__(self, name: str, owner: str, ttl_s: float, taken: LockTaken, answer: asyncio.Future[Grant]) -> None:
        self.name = name
        self.owner = owner
        self.ttl_s = ttl_s
        self.answer = answer
        #: The latest error, which names the holder.
        self.taken = taken
        #: The grant of the running transaction; it counts only after the commit.
        self.grant: Grant | None = None
        self.slot = 0

    def expire(self) -> None:
        """The waiting time is over: fail with LockTaken."""
        if not self.answer.done():
            self.answer.set_exception(self.taken)


class LockQueues:
    """All waiting requests."""

    def __init__(self, clock: Clock) -> None:
        self._expiries = Expiries(clock)
        self._lines: dict[str, dict[str, Waiter]] = {}
        # Locks with a queue -> when the holder's grant ends unless it is renewed, wall clock.
        self._until: dict[str, float] = {}
        self._granted: list[Waiter] = []

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def waits(self, name: str, owner: str) -> bool:
        """Whether another owner waits for this lock."""
        line = self._lines.get(name)
        return line is not None and any(other != owner for other in line)

    def enter(self, name: str, owner: str, ttl_s: float, taken: LockTaken, give_up_at: float) -> Waiter:
        """Join the queue; an owner that waits already keeps its place.

        Args:
            taken: the core's error; `details["until_at"]`: when the holder's grant ends, wall clock.
            give_up_at: when the wait ends, by the loop's clock.
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
        """Leave the queue. Harmless when the request has been served."""
        self._expiries.forget(waiter)
        line = self._lines.get(waiter.name)
        if line is not None and line.get(waiter.owner) is waiter:
            del line[waiter.owner]
            if not line:
                del self._lines[waiter.name]
                self._until.pop(waiter.name, None)

    def freed(self, name: str) -> None:
        """Grant this lock at the next transaction, if a request waits for it."""
        if name in self._lines:
            self._until[name] = 0.0

    def due(self, freed: Iterable[str], wall: float) -> list[str]:
        """Locks to grant to a waiting request: freed ones, and those that were not renewed in time."""
        if not self._lines:
            return []
        due = [name for name, until_at in self._until.items() if until_at <= wall]
        return [*due, *(name for name in freed if name in self._lines and name not in due)]

    def due_at(self) -> float | None:
        """When the next grant ends unless it is renewed, wall clock."""
        return min(self._until.values(), default=None)

    def serve(self, turn: Acquires, names: Iterable[str]) -> None:
        """Grant each of these locks to the first in its queue. The caller then calls `committed` or `undone`."""
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
        """The transaction is durable: answer the served requests."""
        for waiter in self._granted:
            if waiter.grant is not None and not waiter.answer.done():
                waiter.answer.set_result(waiter.grant)
            self.leave(waiter)
        self._granted.clear()

    def undone(self) -> None:
        """The transaction was rolled back: the requests continue to wait."""
        for waiter in self._granted:
            waiter.grant = None
            self._until[waiter.name] = 0.0
        self._granted.clear()

    def end(self, error: MeshError) -> None:
        """Fail all waiting requests with this error."""
        for line in self._lines.values():
            for waiter in line.values():
                if not waiter.answer.done():
                    waiter.answer.set_exception(error)
        self._expiries.close()
