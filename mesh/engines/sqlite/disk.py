"""Translates SQLite's errors to errors of mesh.

Owns: which errors mean the disk, which a corrupt file, and the remedies in their messages.
Leaves to others: rolling back (turn), refusing to start (file).
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final

from mesh.errors import MeshError, SetupError, Unwritable

#: Primary result codes. A busy file means that a foreign process writes to it, which it must not.
_DISK: Final = {
    sqlite3.SQLITE_FULL: "the disk is full: free some space",
    sqlite3.SQLITE_IOERR: "the disk reports errors: see the kernel's log",
    sqlite3.SQLITE_READONLY: "it is read-only: mount it for writing, or correct the permissions of the directory",
    sqlite3.SQLITE_CANTOPEN: "its files cannot be opened for writing: check the directory's permissions and free space",
    sqlite3.SQLITE_PERM: "its files are not writable: correct their permissions",
    sqlite3.SQLITE_BUSY: "another program writes to it: find it (`fuser`) and stop it",
    sqlite3.SQLITE_LOCKED: "another program writes to it: find it (`fuser`) and stop it",
}
_DAMAGE: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
#: Extended result codes.
_UNSYNCED: Final = (sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_IOERR_DIR_FSYNC)


class Fatal(MeshError):
    """This process may confirm nothing any more.

    Attributes:
        doubtful: the transaction may be durable nevertheless, so it must not be reported as not done.
    """

    code = "store_failed"
    doubtful = False


class Damaged(Fatal, SetupError):
    """The file is corrupt and must not be used."""

    code = "damaged_file"


class SyncFailed(Fatal):
    """An fsync failed: it is unknown whether the written data is on the disk.

    After a failed fsync the kernel drops the pages that it could not write, and the next fsync succeeds without them.
    So this process may confirm nothing any more; the next one rewrites the log before it uses it.
    """

    code = "sync_failed"
    doubtful = True


def damaged(path: Path, what: str) -> Damaged:
    """The error for a corrupt file, with the remedy."""
    return Damaged(
        f"{path} is damaged: {what}. It was not changed. Stop the store, move {path.name}, {path.name}-wal and "
        f"{path.name}-shm elsewhere, copy a backup (`mesh store backup` makes them) to {path}, and start again; "
        f"without a backup, `sqlite3 {path.name} .recover` prints what can still be read"
    )


def translate(exc: sqlite3.Error, path: Path) -> MeshError | None:
    """The error of mesh for an error of SQLite; None when it is a bug of this program."""
    code = getattr(exc, "sqlite_errorcode", None)
    if code is None:
        return None
    if code in _UNSYNCED:
        return SyncFailed(
            f"{path}: the disk failed to store written data ({exc}); nothing is confirmed after that. "
            "See the kernel's log (`dmesg`) for the cause; after a restart, the store recovers everything that "
            "was confirmed",
            details={"path": str(path)},
        )
    primary = code & 0xFF
    if primary in _DAMAGE:
        return damaged(path, str(exc))
    if primary in _DISK:
        return Unwritable(
            f"{path} is read-only now: {_DISK[primary]} ({exc}). Nothing was written; reads still work",
            details={"path": str(path), "sqlite": str(getattr(exc, "sqlite_errorname", code))},
        )
    return None
