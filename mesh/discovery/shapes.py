"""Decodes records so that their equal parts are shared.

Owns: reading records so that equal parts of them are one object.
Leaves to others: validation of records (admission), keeping them (registry, table).

Instances of one release declare the same methods, and these declarations are nearly all of a record: 5 KB of schemas,
and three times that as dicts. Parts with the same bytes are decoded once and then shared: a table entry takes 1 KB
instead of 18, a snapshot is read several times as fast, and two such parts are compared by identity (docs/scaling.md).
This is safe because no reader modifies a record.
"""

from __future__ import annotations

import sys
from typing import Any, Final

import msgspec

from mesh.discovery.record import Instance, MethodRecord, RouteRecord, Subscription, TaskRecord

#: The fields that are shared, and their types. The others differ between instances, or are short.
SHARED: Final[dict[str, Any]] = {
    "methods": dict[str, MethodRecord],
    "routes": list[RouteRecord],
    "subscriptions": list[Subscription],
    "meta": dict[str, str],
    "tasks": dict[str, TaskRecord],
    "durable": list[Subscription],
}

#: Bytes of cached parts: enough for some hundred releases of large services. Beyond it the cache is cleared, and parts
#: in use are cached again when they are next read.
REMEMBERED_BYTES: Final = 4 * 1024 * 1024

_FIELDS: Final = msgspec.structs.fields(Instance)
_ABSENT: Final = msgspec.Raw(b"")


def _field(field: msgspec.structs.FieldInfo) -> tuple[str, Any] | tuple[str, Any, Any]:
    if field.name in SHARED:
        return (field.name, msgspec.Raw, _ABSENT)
    return (field.name, field.type) if field.required else (field.name, field.type, field.default)


#: An Instance with its shared parts still encoded. It cannot be part of a reference cycle.
_Told: Final[Any] = msgspec.defstruct("_Told", [_field(field) for field in _FIELDS], gc=False)
_astuple: Final = msgspec.structs.astuple
_decode_all: Final = msgspec.msgpack.Decoder(list[_Told]).decode
_decode_one: Final = msgspec.msgpack.Decoder(_Told).decode
_PLACES: Final = tuple(
    (place, msgspec.msgpack.Decoder(SHARED[field.name]).decode, field.default_factory)
    for place, field in enumerate(_FIELDS)
    if field.name in SHARED
)
#: Positions of short strings that many records have in common; they are interned.
_NAMES: Final = tuple(place for place, field in enumerate(_FIELDS) if field.name in ("service", "version", "host"))


class Shapes:
    """A cache of decoded parts of records. One per process that reads records."""

    def __init__(self) -> None:
        self._seen: dict[tuple[int, bytes], Any] = {}
        self._bytes = 0

    def read(self, body: bytes | bytearray | memoryview) -> list[Instance]:
        """Decode an array of records. Raises the exceptions of msgspec."""
        share = self._share
        return [share(told) for told in _decode_all(body)]

    def read_one(self, raw: bytes | bytearray | memoryview | msgspec.Raw) -> Instance:
        """Decode one record. Raises the exceptions of msgspec."""
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
