"""Validates records for the hub, and encodes and decodes them.

Owns: the limits, the validation of one record, and reading and writing arrays of records.
Leaves to others: sharing equal parts of records (shapes), leases (registry), the use of records by clients (table).

Records come from other processes and are not trusted: anything wrong in one is a ProtocolViolation that names the
record, the field and what was expected.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from mesh.discovery.record import Instance
from mesh.discovery.shapes import Shapes
from mesh.errors import ProtocolViolation

KIB = 1024
MIB = 1024 * KIB


class Limits(msgspec.Struct, frozen=True):
    """How much a hub accepts.

    Attributes:
        record_bytes: size of one encoded record; a service with 100 methods and their schemas takes about 40 KiB, one
            with 1,000 about 400 KiB.
        peer_records: how many records one peer may hold.
        hub_records: how many records a hub holds in all.
        hub_bytes: size of all encoded records. A snapshot is one message, so this must stay below the largest message
            that clients accept (64 MiB by default).
    """

    record_bytes: int = 2 * MIB
    peer_records: int = 1024
    hub_records: int = 50_000
    hub_bytes: int = 48 * MIB


#: The longest name. Names appear in messages, logs and pages; long names, or ones with control characters, are errors.
NAME_CHARS = 200
ENDPOINT_CHARS = 512
#: Epochs are milliseconds since 1970; a value of more than 63 bits cannot come from a clock.
EPOCH_MOST = 2**63 - 1
#: The largest value that the configuration allows.
PLACES_MOST = 2**31 - 1

_encode = msgspec.msgpack.Encoder().encode
_decode_raws = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode
_decode_one = msgspec.msgpack.Decoder(Instance).decode
_decode_loads = msgspec.msgpack.Decoder(list[tuple[str, float]]).decode
_encode_json = msgspec.json.Encoder().encode

# msgspec raises RecursionError for nesting beyond the interpreter's limit, and OverflowError for invalid timestamps.
_UNREADABLE = (msgspec.MsgspecError, RecursionError, OverflowError, ValueError, TypeError)


def encode_record(record: Instance) -> msgspec.Raw:
    """One record as bytes, ready to be placed into an array of records."""
    return msgspec.Raw(_encode(record))


def encode_records(records: Iterable[Instance | msgspec.Raw]) -> bytes:
    """The body of a `register`, `snapshot` or `change` message: a MessagePack array of records."""
    return _encode(list(records))


def encode_loads(loads: list[tuple[str, float]]) -> bytes:
    """The body of a `loads` message: a MessagePack array of [instance id, load]."""
    return _encode(loads)


def fault(record: Instance) -> str | None:
    """What is wrong with the values of a record, given that its types are right; None when it is valid."""
    if not 1 <= len(record.id) <= NAME_CHARS or not record.id.isprintable():
        return f"id must be 1 to {NAME_CHARS} printable characters, not {_shown(record.id)}"
    for field in ("service", "worker", "version", "host"):
        value: str = getattr(record, field)
        if len(value) > NAME_CHARS or not value.isprintable():
            return f"{field} must be at most {NAME_CHARS} printable characters, not {_shown(value)}"
    if not record.service:
        return "service must not be empty"
    for field in ("endpoint", "events"):
        value = getattr(record, field)
        if len(value) > ENDPOINT_CHARS or not value.isprintable():
            return f"{field} must be at most {ENDPOINT_CHARS} printable characters, not {_shown(value)}"
    if not 0 <= record.epoch <= EPOCH_MOST:
        return f"epoch must be 0 to {EPOCH_MOST}, not {record.epoch}"
    if not 0 <= record.places <= PLACES_MOST:
        return f"places must be 0 to {PLACES_MOST}, not {record.places}"
    if not 0.0 <= record.load <= 1.0:  # false for NaN too
        return f"load must be 0.0 to 1.0, not {record.load}"
    try:
        # Records are shown as JSON and converted to OpenAPI, so they must be expressible in JSON.
        _encode_json(record)
    except _UNREADABLE as exc:
        return f"schemas must be plain JSON values: {exc}"
    return None


def read_records(body: bytes | bytearray | memoryview, limits: Limits, shapes: Shapes | None = None) -> list[Instance]:
    """The records of a `register`, from a peer that is not trusted.

    Raises:
        ProtocolViolation: the body is not an array of records, or a record is too large or wrong; the message names
            the record by its position and the field by its path.
    """
    try:
        raws = _decode_raws(body)
    except _UNREADABLE as exc:
        raise ProtocolViolation(f"register: the body is not an array of records: {exc}") from exc
    if len(raws) > limits.peer_records:
        raise ProtocolViolation(f"register: {len(raws)} records in one message; at most {limits.peer_records} per peer")
    shapes = shapes or Shapes()
    records = []
    for place, raw in enumerate(raws):
        size = memoryview(raw).nbytes
        if size > limits.record_bytes:
            raise ProtocolViolation(
                f"register: record {place} has {size} bytes; this hub accepts at most {limits.record_bytes}: "
                f"raise [discovery] max_record of the hub, or split the service"
            )
        try:
            record = _read_one(raw, shapes)
        except _UNREADABLE as exc:
            raise ProtocolViolation(f"register: record {place}: {exc}") from exc
        wrong = fault(record)
        if wrong:
            raise ProtocolViolation(f"register: record {place}: {wrong}")
        records.append(record)
    return records


def _read_one(raw: msgspec.Raw, shapes: Shapes) -> Instance:
    try:
        return shapes.read_one(raw)
    except _UNREADABLE:
        return _decode_one(raw)  # its error names the path in the record


def read_news(body: bytes | bytearray | memoryview, kind: str, shapes: Shapes | None = None) -> list[Instance]:
    """The records of a `snapshot` or `change` from a hub, which has validated them already.

    Raises:
        ProtocolViolation: the body is not an array of records.
    """
    try:
        return (shapes or Shapes()).read(body)
    except _UNREADABLE as exc:
        raise ProtocolViolation(f"{kind}: the body is not an array of records: {exc}") from exc


def read_loads(body: bytes | bytearray | memoryview) -> list[tuple[str, float]]:
    """The (instance id, load) pairs of a `loads` message from a hub, which has validated them already.

    Raises:
        ProtocolViolation: the body is not an array of such pairs.
    """
    try:
        return _decode_loads(body)
    except _UNREADABLE as exc:
        raise ProtocolViolation(f"loads: the body is not an array of [id, load]: {exc}") from exc


def _shown(value: str) -> str:
    return repr(value if len(value) <= 40 else value[:40] + "…")
