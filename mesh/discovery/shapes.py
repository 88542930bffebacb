"""What many records say alike, kept once.

Owns: reading records so that equal parts of them are one object.
Leaves to others: whether a record may be believed (admission), who holds which (registry, table).

Copies of one release offer the same, and what they offer is nearly all of their records: 5 KB of schemas each, and
three times that as dicts. Parts that came in the same bytes are decoded once and then shared: a table entry takes
1 KB instead of 18, a snapshot is read several times as fast, and to compare two offers is to compare pointers
(docs/scaling.md). Who reads a record changes nothing in it, which is what makes this safe.
"""

from __future__ import annotations

import sys
from typing import Any, Final

import msgspec

from mesh.discovery.record import Instance, MethodRecord, RouteRecord, Subscription, TaskRecord

#: What is shared, and its type. The rest is each instance's own, or short.
SHARED: Final[dict[str, Any]] = {
    "methods": dict[str, MethodRecord],
    "routes": list[RouteRecord],
    "subscriptions": list[Subscription],
    "meta": dict[str, str],
    "tasks": dict[str, TaskRecord],
    "durable": list[Subscription],
}

#: Bytes of parts that are remembered: some hundred releases of large services. Past it all are forgotten, and those
#: in use are remembered when they are next told.
REMEMBERED_BYTES: Final = 4 * 1024 * 1024

_FIELDS: Final = msgspec.structs.fields(Instance)
_ABSENT: Final = msgspec.Raw(b"")


def _field(field: msgspec.structs.FieldInfo) -> tuple[str, Any] | tuple[str, Any, Any]:
    if field.name in SHARED:
        return (field.name, msgspec.Raw, _ABSENT)
    return (field.name, field.type) if field.required else (field.name, field.type, field.default)


#: An Instance whose shared parts are still bytes. Nothing in it can be part of a cycle.
_Told: Final[Any] = msgspec.defstruct("_Told", [_field(field) for field in _FIELDS], gc=False)
_astuple: Final = msgspec.structs.astuple
_decode_all: Final = msgspec.msgpack.Decoder(list[_Told]).decode
_decode_one: Final = msgspec.msgpack.Decoder(_Told).decode
_PLACES: Final = tuple(
    (place, msgspec.msgpack.Decoder(SHARED[field.name]).decode, field.default_factory)
    for place, field in enumerate(_FIELDS)
    if field.name in SHARED
)
#: Short ones that many records have in common.
_NAMES: Final = tuple(place for place, field in enumerate(_FIELDS) if field.name in ("service", "version", "host"))


class Shapes:
    """Parts of records that were seen before. One per process that reads records."""

    def __init__(self) -> None:
        self._seen: dict[tuple[int, bytes], Any] = {}
        self._bytes = 0

    def read(self, body: bytes | bytearray | memoryview) -> list[Instance]:
        """An array of records. Raises whatever msgspec does."""
        share = self._share
        return [share(told) for told in _decode_all(body)]

    def read_one(self, raw: bytes | bytearray | memoryview | msgspec.Raw) -> Instance:
        """One record. Raises whatever msgspec does."""
        return self._share(_decode_one(raw))

    def _share(self, told: Any) -> Instance:
        values: list[Any] = list(_astuple(told))
        seen = self._seen
        for place, decode, empty in _PLACES:
            key = (place, bytes(values[place]))
            part = seen.get(key)
            if part is None:
                part = decode(key[1]) if key[1] else empty()
                self._bytes += len(key[1])
                if self._bytes > REMEMBERED_BYTES:
                    self._bytes = len(key[1])
                    seen.clear()
                seen[key] = part
            values[place] = part
        for place in _NAMES:
            values[place] = sys.intern(values[place])
        return Instance(*values)
