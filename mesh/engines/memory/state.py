"""State in dicts: namespaces of keys.

Owns: the conditions and the effect of a write, and the expiry of entries.
Leaves to others: committing with other changes (memory), conversion to Python values (mesh.state.namespace).

A transaction is first computed on a sheet over the present data, and applied when all of it is valid: so nothing needs
to be rolled back.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from mesh.engines.semantics.validation import check_write
from mesh.errors import BadRequest, Conflict
from mesh.state.contract import Entry, Write

#: The integers that every engine can store.
_LEAST: Final = -(2**63)
_MOST: Final = 2**63 - 1

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
        return None if entry is None or _over(entry, wall) else entry

    def page(self, namespace: str, prefix: str, after: str, limit: int, wall: float) -> list[Entry]:
        """See StateStore.page."""
        space = self._spaces.get(namespace)
        found: list[Entry] = []
        if space is not None and limit > 0:
            for key in space.keys_from(prefix, after):
                entry = space.entries[key]
                if not _over(entry, wall):
                    found.append(entry)
                    if len(found) == limit:
                        break
        return found

    def namespaces(self, wall: float) -> list[tuple[str, int]]:
        """See StateStore.namespaces."""
        counts = [
            (name, sum(not _over(entry, wall) for entry in space.entries.values()))
            for name, space in sorted(self._spaces.items())
        ]
        return [(name, count) for name, count in counts if count]

    def sweep(self, wall: float) -> None:
        """Delete expired entries."""
        for name, space in list(self._spaces.items()):
            for key in [key for key, entry in space.entries.items() if _over(entry, wall)]:
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
            after = _written(write, before, wall)
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


def _over(entry: Entry, wall: float) -> bool:
    return bool(entry.expires_at) and entry.expires_at <= wall


def _written(write: Write, before: Entry | None, wall: float) -> Entry | None:
    if before is not None and before.etag == write.new_etag and write.verb != "delete":
        # This write is being repeated: it was done before, and no other write since.
        if write.verb == "add":
            # The answer contains the value. A caller with the right to write only must see no value but a counter's.
            _number(write, before)
        return before
    if write.etag is not None and write.etag != (before.etag if before is not None else ""):
        is_there = f"has etag {before.etag}" if before is not None else "is absent"
        assumed = f"etag {write.etag}" if write.etag else "that it is absent"
        raise Conflict(
            f"state {write.namespace}/{write.key} {is_there}; the write assumes {assumed}: read it again, then decide",
            details={"namespace": write.namespace, "key": write.key},
        )
    if write.verb == "delete":
        return None
    expires_at = wall + write.ttl_s if write.ttl_s else 0.0
    if write.verb == "set":
        return Entry(write.key, bytes(write.value), write.new_etag, expires_at)
    number = write.by if before is None else _number(write, before) + write.by
    if not _LEAST <= number <= _MOST:
        raise BadRequest(f"state {write.namespace}/{write.key}: {number} does not fit into 64 bits")
    keeps = before.expires_at if before is not None else expires_at
    return Entry(write.key, msgspec.msgpack.encode(number), write.new_etag, keeps)


def _number(write: Write, before: Entry) -> int:
    try:
        return msgspec.msgpack.decode(before.value, type=int, strict=True)
    except msgspec.DecodeError as exc:
        raise BadRequest(
            f"state {write.namespace}/{write.key} is not a whole number: add() works on those only",
            details={"namespace": write.namespace, "key": write.key},
        ) from exc


def _answer(write: Write, after: Entry | None) -> Entry | None:
    if after is None or write.verb == "add":
        return after
    return Entry(after.key, b"", after.etag, after.expires_at)
