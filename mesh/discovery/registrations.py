"""The instances that this process registers.

Owns: their records, their current loads, and the instances of this process that have left for good.
Leaves to others: sending them to hubs (uplink), measuring load (calls).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from mesh.discovery.admission import Limits, encode_record, encode_records, fault
from mesh.discovery.record import Instance
from mesh.errors import SetupError

#: The largest `register` message, in bytes and in records: between two of them, a hub can read other peers.
PIECE_BYTES = 512 * 1024
PIECE_RECORDS = 256


class Holdings:
    """Records by instance id, each with its current load."""

    def __init__(self, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self._records: dict[str, Instance] = {}
        self._loads: dict[str, float] = {}
        self._ended: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, instance_id: str) -> bool:
        return instance_id in self._records

    def add(self, records: Iterable[Instance]) -> None:
        """Add records, or replace those with the same id. All or none.

        Raises:
            SetupError: hubs would refuse a record, or the instance has left or was superseded: its id needs a later
                epoch.
        """
        records = tuple(records)
        for record in records:
            wrong = fault(record)
            size = memoryview(encode_record(record)).nbytes
            if wrong is None and size > self._limits.record_bytes:
                wrong = (
                    f"with {len(record.methods)} methods and {len(record.tasks)} tasks its record has {size} bytes; at "
                    f"most {self._limits.record_bytes} are registered: split the service, shorten docstrings, or raise "
                    f"[discovery] max_record on hubs and workers"
                )
            if wrong is None and record.epoch <= self._ended.get(record.id, -1):
                wrong = f"its epoch {record.epoch} has ended: use a new id or a later epoch"
            if wrong is not None:
                raise SetupError(f"service {record.service!r} ({record.id}) cannot be registered: {wrong}")
        most = self._limits.peer_records
        if len(self._records.keys() | {record.id for record in records}) > most:
            raise SetupError(f"a process may register at most {most} instances: distribute them over several workers")
        for record in records:
            self._records[record.id] = record
            self._loads[record.id] = record.load

    def end(self, instance_id: str) -> Instance | None:
        """Remove an instance for good. Returns its record, or None when there was none."""
        record = self._records.pop(instance_id, None)
        if record is not None:
            del self._loads[instance_id]
            self._ended[instance_id] = record.epoch
        return record

    def records(self) -> tuple[Instance, ...]:
        """All records, as they were registered."""
        return tuple(self._records.values())

    def get(self, instance_id: str) -> Instance | None:
        """The record as it was registered; None when the id is unknown."""
        return self._records.get(instance_id)

    def load(self, instance_id: str, load: float) -> None:
        """Set the current load; values outside of 0.0 to 1.0 are clamped. Unknown ids are ignored."""
        if instance_id in self._loads:
            self._loads[instance_id] = min(max(float(load), 0.0), 1.0)

    def ids(self) -> tuple[str, ...]:
        return tuple(self._records)

    def renewals(self) -> Iterator[list[list[Any]]]:
        """[id, epoch, load] of each instance, in lists of at most PIECE_RECORDS."""
        loads = self._loads
        everything = [[key, record.epoch, loads[key]] for key, record in self._records.items()]
        for at in range(0, len(everything), PIECE_RECORDS):
            yield everything[at : at + PIECE_RECORDS]

    def registrations(self, ids: Iterable[str]) -> Iterator[bytes]:
        """Bodies of `register` messages for the known ones of `ids`, with current loads."""
        piece: list[msgspec.Raw] = []
        size = 0
        for instance_id in ids:
            record = self._records.get(instance_id)
            if record is None:
                continue
            raw = encode_record(msgspec.structs.replace(record, load=self._loads[instance_id]))
            if piece and (len(piece) == PIECE_RECORDS or size + memoryview(raw).nbytes > PIECE_BYTES):
                yield encode_records(piece)
                piece, size = [], 0
            piece.append(raw)
            size += memoryview(raw).nbytes
        if piece:
            yield encode_records(piece)
