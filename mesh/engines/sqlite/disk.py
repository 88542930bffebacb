"""What SQLite says when it fails, as errors of mesh.

Owns: which failure is the disk's, which is the file's, and what people are told to do.
Leaves to others: rolling back (turn), refusing to start (file).
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final

from mesh.errors import MeshError, SetupError, Unwritable

#: Primary result codes. A busy file is one that a foreign process writes to, against every rule.
_DISK: Final = {
    sqlite3.SQLITE_FULL: "the disk is full: make room on it",
    sqlite3.SQLITE_IOERR: "the disk fails: see the kernel's log",
    sqlite3.SQLITE_READONLY: "it is read-only: mount it for writing, or mend the rights of the folder",
    sqlite3.SQLITE_CANTOPEN: "its files cannot be opened for writing: look at the folder's rights and for room",
    sqlite3.SQLITE_PERM: "its files may not be written: mend their rights",
    sqlite3.SQLITE_BUSY: "another program writes to it: find it (`fuser`) and stop it",
    sqlite3.SQLITE_LOCKED: "another program writes to it: find it (`fuser`) and stop it",
}
_DAMAGE: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class Damaged(SetupError):
    """The file is not as it was written; nothing may be built on it."""

    code = "damaged_file"


def damaged(path: Path, what: str) -> Damaged:
    """The error, with what to do."""
    return Damaged(
        f"{path} is damaged: {what}. It is left as it is. Stop the store, move {path.name}, {path.name}-wal and "
        f"{path.name}-shm elsewhere, copy a backup (`mesh store backup` makes them) to {path}, and start again; "
        f"without a backup, `sqlite3 {path.name} .recover` shows what can be read"
    )


def translate(exc: sqlite3.Error, path: Path) -> MeshError | None:
    """The error of mesh for one of SQLite; None for what is a fault of this program."""
    code = getattr(exc, "sqlite_errorcode", None)
    if code is None:
        return None
    primary = code & 0xFF
    if primary in _DAMAGE:
        return damaged(path, str(exc))
    if primary in _DISK:
        return Unwritable(
            f"{path} takes nothing now: {_DISK[primary]} ({exc}). Nothing was written; reading goes on",
            details={"path": str(path), "sqlite": str(getattr(exc, "sqlite_errorname", code))},
        )
    return None
