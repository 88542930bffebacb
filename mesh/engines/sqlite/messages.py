"""The messages between a process and the store, besides the data types of the contracts.

Owns: the service's name, its targets, and the data types that only these two use.
Leaves to others: sending requests (client, batching, session, watching), answering them (mesh.store).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from mesh.tasks.contract import JobInfo, Lease

#: The store's name in the registry. Names with this prefix are reserved for the framework.
SERVICE: Final = "mesh-store"

APPLY: Final = f"{SERVICE}.apply"
WORK: Final = f"{SERVICE}.work"
WATCH: Final = f"{SERVICE}.watch"
FOLLOW: Final = f"{SERVICE}.follow"
UNFOLLOW: Final = f"{SERVICE}.unfollow"

#: The deadline of a permanent stream, in seconds; it is opened again after that.
DAY_S: Final = 86_400.0


class Push(msgspec.Struct, array_like=True, frozen=True, omit_defaults=True):
    """One item of a worker's stream.

    Attributes:
        leases: leases to run.
        cancel: (id, attempt) of attempts to stop.
        lease_s: in the first item only: the session is confirmed, and lives for so long without a renewal.
    """

    leases: Sequence[Lease] = ()
    cancel: Sequence[tuple[str, int]] = ()
    lease_s: float = 0.0


class Over(msgspec.Struct, array_like=True, frozen=True):
    """One item of a watch: jobs that are over. `gone`: ids of unknown or deleted jobs.

    The first item is empty: from then on the watch misses nothing.
    """

    jobs: Sequence[JobInfo] = ()
    gone: Sequence[str] = ()


class BackupInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A copy of the data.

    Attributes:
        path: where it is, on the store's host.
        schema: the version of its tables.
        host: the store's host.
    """

    path: str
    size_bytes: int
    schema: int
    seconds: float
    host: str = ""


class StoreInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The present state of the store, for people.

    Attributes:
        writable: whether the last write succeeded; `trouble`: the error otherwise.
        waiting_units: units that wait for the disk.
        turns, units: commits, and units committed in them, since the store started.
        schema: the version of its tables.
        file_bytes, log_bytes, free_bytes: size of the database, of its write-ahead log, and unused in the database.
        tasks, events: numbers of kept rows.
        id: of this store, the same for all its backups.
    """

    path: str
    pid: int
    host: str
    uptime_s: float
    writable: bool
    trouble: str = ""
    sessions: int = 0
    waiting_units: int = 0
    turns: int = 0
    units: int = 0
    schema: int = 0
    file_bytes: int = 0
    log_bytes: int = 0
    free_bytes: int = 0
    tasks: int = 0
    events: int = 0
    id: str = ""


encode: Final = msgspec.msgpack.Encoder().encode


def apply_body(units: Sequence[bytes]) -> bytes:
    """The arguments of `apply`: an array of one array of units (at most 65,535), each encoded already."""
    return b"".join((b"\x91\xdc", len(units).to_bytes(2, "big"), *units))
