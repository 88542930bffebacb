"""Locks: their holders, the ends of their grants, and their fencing tokens.

Owns: their rows.
Leaves to others: waiting for a lock (the store), renewing a held lock (mesh.locks).
"""

from __future__ import annotations

from typing import Final

from mesh.engines.semantics.grants import extended, lost, taken
from mesh.engines.semantics.validation import check_lock
from mesh.engines.sqlite import statements
from mesh.engines.sqlite.book import Book
from mesh.locks.contract import Grant

_SQL: Final = statements.named("locks")


class Locks:
    """All locks. A grant ends at its `until_at`, even if its row has not been deleted yet."""

    def __init__(self, book: Book) -> None:
        self._book: Final = book

    def acquire(self, name: str, owner: str, ttl_s: float) -> Grant:
        """See Turn.acquire."""
        check_lock(name, owner, ttl_s)
        held = self.holder(name, self._book.wall)
        if held is None:
            tokens = self._book.execute(_SQL["token"]).fetchall()
            return self._put(Grant(name, owner, tokens[0][0], self._book.wall + ttl_s), ttl_s)
        if held.owner != owner:
            raise taken(name, held)
        return self._extend(held, ttl_s)

    def renew(self, name: str, owner: str, ttl_s: float) -> Grant:
        """See Turn.renew_lock."""
        check_lock(name, owner, ttl_s)
        held = self.holder(name, self._book.wall)
        if held is None or held.owner != owner:
            raise lost(name, owner, held)
        return self._extend(held, ttl_s)

    def release(self, name: str, owner: str) -> bool:
        """See Turn.release_lock."""
        held = self.holder(name, self._book.wall)
        if held is None or held.owner != owner:
            return False
        self._book.execute(_SQL["release"], (name,))
        self._book.freed.add(name)
        return True

    def holder(self, name: str, wall: float) -> Grant | None:
        """The present grant of a lock, or None."""
        rows = self._book.execute(_SQL["find"], (name, wall)).fetchall()
        return Grant(*rows[0]) if rows else None

    def all(self, wall: float) -> list[Grant]:
        """The present grants, sorted by name."""
        return [Grant(*row) for row in self._book.execute(_SQL["all"], (wall,)).fetchall()]

    def sweep(self, limit: int) -> int:
        """Delete expired grants; return how many."""
        return self._book.execute(_SQL["sweep"], (self._book.wall, limit)).rowcount

    def _extend(self, held: Grant, ttl_s: float) -> Grant:
        return self._put(extended(held, self._book.wall, ttl_s), ttl_s)

    def grant_anew(self) -> None:
        """Restart the time to live of every grant."""
        self._book.execute(_SQL["anew"], (self._book.wall,))

    def _put(self, grant: Grant, ttl_s: float) -> Grant:
        self._book.execute(_SQL["put"], (grant.name, grant.owner, grant.token, grant.until_at, ttl_s))
        return grant
