"""State: namespaces of keys.

Owns: the rows of entries, and the sheet of a transaction.
Leaves to others: the effect of a write (semantics.writes), committing with other changes (units), conversion to Python
values (mesh.state.namespace).

A transaction is first computed on a sheet over the present data, and applied when all of it is valid: so nothing needs
to be rolled back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, Final

from mesh.engines.semantics.validation import check_write
from mesh.engines.semantics.writes import alive, written
from mesh.engines.sqlite import statements
from mesh.engines.sqlite.book import Book
from mesh.state.contract import Entry, Write

_SQL: Final = statements.named("state")

#: A page ends after the entry with which it reaches so many bytes, so that one request never fills the store's memory.
PAGE_BYTES: Final = 2**20

_Place = tuple[str, str]


class Space:
    """One namespace.

    Attributes:
        entries: number of keys, including expired ones.
    """

    __slots__ = ("entries", "name", "no", "turn")

    def __init__(self, no: int, name: str, entries: int) -> None:
        self.no: Final = no
        self.name: Final = name
        self.entries = entries
        self.turn: object = None


class Sheet:
    """The computed result of a transaction.

    Attributes:
        before: (namespace, key) → the entry in the file, expired or not.
        after: (namespace, key) → the entry afterwards; None where there is none.
        answers: the answers of its writes, in order.
    """

    __slots__ = ("after", "answers", "before")

    def __init__(self) -> None:
        self.before: dict[_Place, Entry | None] = {}
        self.after: dict[_Place, Entry | None] = {}
        self.answers: list[Entry | None] = []


class State:
    """All namespaces."""

    def __init__(self, book: Book) -> None:
        self._book: Final = book
        self._spaces: Final[dict[str, Space]] = {}
        self._by_no: Final[dict[int, Space]] = {}
        self._counted: list[Space] = []

    def load(self) -> None:
        """Read the namespaces."""
        for no, name, entries in self._book.execute(_SQL["namespaces"]).fetchall():
            self._spaces[name] = self._by_no[no] = Space(no, name, entries)

    def begin(self) -> None:
        """Begin a transaction."""
        self._counted = []

    def flush(self) -> None:
        """Write the counts that this transaction changed."""
        for space in self._counted:
            self._book.execute(_SQL["set_entries"], (space.entries, space.no))

    # --- reading ----------------------------------------------------------------------------------------------

    def get(self, namespace: str, keys: Sequence[str], wall: float) -> list[Entry | None]:
        """See Core.get."""
        space = self._spaces.get(namespace)
        if space is None:
            return [None] * len(keys)
        return [alive(self._find(space, key), wall) for key in keys]

    def page(self, namespace: str, prefix: str, after: str, limit: int, wall: float) -> list[Entry]:
        """See Core.page."""
        space = self._spaces.get(namespace)
        if space is None or limit <= 0:
            return []
        end = _behind(prefix)
        page: list[Entry] = []
        size = 0
        # A separate cursor, because the query may not be read to its end: until it is closed it blocks checkpoints.
        with contextlib.closing(self._book.cursor.connection.cursor()) as rows:
            if end is None:
                rows.execute(_SQL["page"], (space.no, prefix, after, wall, limit))
            else:
                rows.execute(_SQL["page_below"], (space.no, prefix, after, end, wall, limit))
            for row in rows:
                entry = Entry(*row)
                page.append(entry)
                size += len(entry.value) + len(entry.key)
                if size >= PAGE_BYTES:
                    break
        return page

    def namespaces(self, wall: float) -> list[tuple[str, int]]:
        """See Core.namespaces."""
        expired = dict(self._book.execute(_SQL["expired"], (wall,)).fetchall())
        counts = [(space.name, space.entries - expired.get(space.no, 0)) for space in self._spaces.values()]
        return sorted(pair for pair in counts if pair[1])

    def _find(self, space: Space, key: str) -> Entry | None:
        rows = self._book.execute(_SQL["find"], (space.no, key)).fetchall()
        return Entry(*rows[0]) if rows else None

    # --- writing ----------------------------------------------------------------------------------------------

    def look(self, writes: Sequence[Write]) -> Sheet:
        """Compute the result of the writes, in order, without applying it.

        Raises:
            Conflict, BadRequest: see StateStore.write.
        """
        wall = self._book.wall
        sheet = Sheet()
        for write in writes:
            check_write(write)
            place = (write.namespace, write.key)
            if place not in sheet.before:
                space = self._spaces.get(write.namespace)
                found = sheet.before[place] = self._find(space, write.key) if space is not None else None
                sheet.after[place] = alive(found, wall)
            after = sheet.after[place] = written(write, sheet.after[place], wall)
            sheet.answers.append(
                after if after is None or write.verb == "add" else Entry(after.key, b"", after.etag, after.expires_at)
            )
        return sheet

    def put(self, sheet: Sheet) -> list[Entry | None]:
        """Apply a sheet; return the answers of its writes."""
        for (namespace, key), after in sheet.after.items():
            before = sheet.before[namespace, key]
            if after is before:
                continue
            space = self._space(namespace)
            if after is None:
                self._book.execute(_SQL["delete"], (space.no, key))
                self._count(space, -1)
            else:
                self._book.execute(_SQL["put"], (space.no, key, after.etag, after.expires_at, after.value))
                if before is None:
                    self._count(space, 1)
        return sheet.answers

    def _space(self, name: str) -> Space:
        space = self._spaces.get(name)
        if space is None:
            no = self._book.execute(_SQL["add_namespace"], (name,)).lastrowid
            assert no is not None
            space = self._spaces[name] = self._by_no[no] = Space(no, name, 0)
            self._book.undo(self._spaces.pop, name, None)
            self._book.undo(self._by_no.pop, no, None)
        return space

    def _count(self, space: Space, change: int) -> None:
        if space.turn is not self._book.turn:
            space.turn = self._book.turn
            self._counted.append(space)
            self._book.undo(setattr, space, "entries", space.entries)
        space.entries += change

    def sweep(self, limit: int) -> int:
        """Delete expired keys; return how many."""
        rows: list[tuple[Any, ...]] = self._book.execute(_SQL["old"], (self._book.wall, limit)).fetchall()
        if rows:
            self._book.executemany(_SQL["delete"], rows)
            for no, _ in rows:
                self._count(self._by_no[no], -1)
        return len(rows)


def _behind(prefix: str) -> str | None:
    """The smallest text that is greater than every text with this prefix; None when there is none."""
    while prefix:
        code = ord(prefix[-1]) + 1
        prefix = prefix[:-1]
        if code == 0xD800:
            # UTF-8 cannot encode surrogates: skip them.
            code = 0xE000
        if code <= 0x10FFFF:
            return prefix + chr(code)
    return None
