"""State: a key after a write, and what expired. Pure.

Owns: compare-and-set by etag, repetition of a write, counters, time to live.
Leaves to others: storing entries (engines), the shape of a write (validation).
"""

from __future__ import annotations

from typing import Final

import msgspec

from mesh.errors import BadRequest, Conflict
from mesh.state.contract import Entry, Write

_LEAST: Final = -(2**63)
_MOST: Final = 2**63 - 1
_pack: Final = msgspec.msgpack.Encoder().encode


def alive(entry: Entry | None, wall: float) -> Entry | None:
    """The entry, unless it is absent or has expired."""
    return entry if entry is not None and (not entry.expires_at or entry.expires_at > wall) else None


def written(write: Write, before: Entry | None, wall: float) -> Entry | None:
    """The entry of a key after a write; None for a deleted key.

    Args:
        before: the entry that is alive before it.

    Raises:
        Conflict: the etag does not match.
        BadRequest: `add` to a value that is not an integer, or a sum beyond 64 bits.
    """
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
            f"state {write.namespace}/{write.key} {is_there}; the write expects {assumed}: read it again and "
            "repeat the write if it still applies",
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
    return Entry(write.key, _pack(number), write.new_etag, before.expires_at if before is not None else expires_at)


def _number(write: Write, before: Entry) -> int:
    try:
        return msgspec.msgpack.decode(before.value, type=int, strict=True)
    except msgspec.DecodeError as exc:
        raise BadRequest(
            f"state {write.namespace}/{write.key} is not a whole number: add() works on whole numbers only",
            details={"namespace": write.namespace, "key": write.key},
        ) from exc
