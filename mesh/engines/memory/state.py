"""State in dicts: namespaces of keys.

Owns: the entries, their order, and freeing expired ones.
Leaves to others: the effect of a write (semantics.writes), committing with other changes (memory), conversion to Python
values (mesh.state.namespace).

A transaction is first computed on a sheet over the present data, and applied when all of it is valid: so nothing needs
to be rolled back.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence

from mesh.engines.semantics.validation import check_write
from mesh.engines.semantics.writes import alive, written
from mesh.state.contract import Entry, Write

_Place = tuple[str, str]


class Space:
    """The keys of one namespace, found by name and in order.

    Keys are compared as Python compares text, by code points, which is also the order of their UTF-8 bytes.
    """

    __slots__ = ("_sorted", "entries")

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self._sorted: list[str] | None = None

    def put(self, entry: Entry) -> None:
        if entry.key not in self.entries:
            self._sorted = None
        self.entries[entry.key] = entry

    def drop(self, key: str) -> None:
        if self.entries.pop(key, None) is not None:
            self._sorted = None

    def keys_from(self, prefix: str, after: str) -> Iterable[str]:
        """The keys that begin with `prefix` and come after `after`, in order."""
        if self._sorted is None:
            self._sorted = sorted(self.entries)
        keys = self._sorted
        # `after` is "" for a first page: "" itself is not a valid key, so no key is left out.
        start = max(bisect_left(keys, prefix), bisect_right(keys, after))
        for index in range(start, len(keys)):
            if not keys[index].startswith(prefix):
                return
            yield keys[index]


class State:
    """All namespaces."""

    def __init__(self) -> None:
        self._spaces: dict[str, Space] = {}

    # --- reading ------------------------------------------------------------------------------------------

    def get(self, namespace: str, key: str, wall: float) -> Entry | None:
        """The entry, unless it has expired."""
        space = self._spaces.get(namespace)
        entry = space.entries.get(key) if space is not None else None
        return alive(entry, wall)

    def page(self, namespace: str, prefix: str, after: str, limit: int, wall: float) -> list[Entry]:
        """See StateStore.page."""
        space = self._spaces.get(namespace)
        found: list[Entry] = []
        if space is not None and limit > 0:
            for key in space.keys_from(prefix, after):
                entry = space.entries[key]
                if alive(entry, wall):
                    found.append(entry)
                    if len(found) == limit:
                        break
        return found

    def namespaces(self, wall: float) -> list[tuple[str, int]]:
        """See StateStore.namespaces."""
        counts = [
            (name, sum(alive(entry, wall) is not None for entry in space.entries.values()))
            for name, space in sorted(self._spaces.items())
        ]
        return [(name, count) for name, count in counts if count]

    def sweep(self, wall: float) -> None:
        """Delete expired entries."""
        for name, space in list(self._spaces.items()):
            for key in [key for key, entry in space.entries.items() if alive(entry, wall) is None]:
                space.drop(key)
            if not space.entries:
                del self._spaces[name]

    # --- writing ------------------------------------------------------------------------------------------

    def look(self, writes: Sequence[Write], wall: float) -> Sheet:
        """Compute the result of the writes, in order, without applying it.

        Raises:
            Conflict, BadRequest: see StateStore.write.
        """
        sheet = Sheet()
        for write in writes:
            check_write(write)
            place = (write.namespace, write.key)
            before = sheet.after[place] if place in sheet.after else self.get(*place, wall)
            after = written(write, before, wall)
            sheet.after[place] = after
            sheet.answers.append(_answer(write, after))
        return sheet

    def put(self, sheet: Sheet) -> list[Entry | None]:
        """Apply a sheet; return the answers of its writes."""
        for (namespace, key), entry in sheet.after.items():
            space = self._spaces.get(namespace)
            if entry is not None:
                if space is None:
                    space = self._spaces[namespace] = Space()
                space.put(entry)
            elif space is not None:
                space.drop(key)
                if not space.entries:
                    del self._spaces[namespace]
        return sheet.answers


class Sheet:
    """The computed result of a transaction.

    Attributes:
        after: (namespace, key) → the entry afterwards; None where there is none.
        answers: the answers of its writes, in order.
    """

    __slots__ = ("after", "answers")

    def __init__(self) -> None:
        self.after: dict[_Place, Entry | None] = {}
        self.answers: list[Entry | None] = []


def _answer(write: Write, after: Entry | None) -> Entry | None:
    if after is None or write.verb == "add":
        return after
    return Entry(after.key, b"", after.etag, after.expires_at)
