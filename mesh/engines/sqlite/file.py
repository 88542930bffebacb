"""Opening the SQLite file: in the best mode that its disk allows, and only when it is not corrupt.

Owns: the connection's settings, the modes of opening, the check at the start, the schema's version.
Leaves to others: exclusive access (folder), the contents (the other modules).
"""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from mesh.engines.sqlite import statements
from mesh.engines.sqlite.disk import damaged, translate
from mesh.errors import SetupError, Unwritable

FILE: Final = "mesh.db"

#: "mesh" in the file's header: a file with another number belongs to another application.
APPLICATION_ID: Final = 0x6D657368
#: The first version with RETURNING.
OLDEST_SQLITE: Final = (3, 35, 0)

PAGE_BYTES: Final = 4096
#: Pages in the write-ahead log at which a commit starts a checkpoint: 1,000 pages of 4 KiB take a few milliseconds to
#: copy, and overwriting a log is faster than extending it.
CHECKPOINT_PAGES: Final = 1000
#: A log that grew beyond this (during a backup, say) is truncated when it is empty again.
LOG_BYTES: Final = 64 * 2**20
#: Up to this size the whole structure is checked at the start: 0.4 s for a million tasks (250 MB).
CHECKED_BYTES: Final = 2**30

#: Seconds to wait for a foreign process that holds a lock on the file.
_BUSY_S: Final = 0.5


class Opened(NamedTuple):
    """A connection, and whether it can write; if not, why."""

    connection: sqlite3.Connection
    writable: bool
    reason: str = ""


def connect(path: Path, cache_bytes: int, *, mode: str = "rw", alone: bool = False) -> sqlite3.Connection:
    """A connection with the common settings.

    Args:
        mode: "rw", "ro", or "immutable" for a file on a read-only disk.
        alone: keep the log's index in memory instead of in a file, for a disk without room for that file.
    """
    how = "immutable=1" if mode == "immutable" else f"mode={mode}"
    connection = sqlite3.connect(
        f"file:{quote(str(path))}?{how}",
        uri=True,
        isolation_level=None,
        timeout=_BUSY_S,
        cached_statements=256,
        check_same_thread=False,
    )
    try:
        if alone:
            connection.execute("PRAGMA locking_mode = EXCLUSIVE").fetchall()
        for setting in (
            f"cache_size = {-max(cache_bytes // 1024, 64)}",
            "synchronous = FULL",
            # macOS: without it, `synchronous` does not reach the disk there. No effect elsewhere.
            "fullfsync = ON",
            "temp_store = MEMORY",
            # Debian's build overwrites deleted data with zeros, which leaves a third of the speed.
            "secure_delete = OFF",
            "trusted_schema = OFF",
            # With the log's index in a file the core runs checkpoints: it must know when the database is written.
            f"wal_autocheckpoint = {CHECKPOINT_PAGES if alone else 0}",
            f"journal_size_limit = {LOG_BYTES}",
        ):
            connection.execute(f"PRAGMA {setting}").fetchall()
    except BaseException:
        connection.close()
        raise
    return connection


def open_file(path: Path, cache_bytes: int) -> Opened:
    """Open the file for writing, or at least for reading; create it if missing.

    Raises:
        SetupError: the file is corrupt, of another application or of a newer version; or it can be neither read nor
            created.
    """
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        raise SetupError(
            f"Python's sqlite3 was built with SQLite {sqlite3.sqlite_version}; the store needs "
            f"{'.'.join(map(str, OLDEST_SQLITE))} or newer"
        )
    _make(path)
    full = _store_log(path)
    failure: Exception | None = None
    for mode, alone in _ways(path):
        try:
            connection = connect(path, cache_bytes, mode=mode, alone=alone)
        except sqlite3.Error as exc:
            failure = _refuse_damage(exc, path)
            continue
        try:
            opened = _begin(connection, path, mode)
            return Opened(connection, False, full) if full else opened
        except sqlite3.Error as exc:
            connection.close()
            failure = _refuse_damage(exc, path)
        except BaseException:
            connection.close()
            raise
    raise SetupError(f"{path} can be neither written nor read: {failure}") from failure


def _ways(path: Path) -> list[tuple[str, bool]]:
    """(mode, alone), the best first.

    On a full disk there is no room for the log's index, so it is kept in memory. On a read-only disk the file can be
    read when the index exists, or when the log is empty.
    """
    return [("rw", False), ("rw", True), *((mode, False) for mode in read_only_modes(path))]


def read_only_modes(path: Path) -> list[str]:
    """The modes in which a file may be read without writing beside it, the best first."""
    log = path.with_name(path.name + "-wal")
    return ["ro"] if log.exists() and log.stat().st_size else ["ro", "immutable"]


def _make(path: Path) -> None:
    """Create an empty file that only this user may read, if there is none.

    Raises:
        SetupError: there is none, and none can be created.
    """
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        sync_directory(path.parent)
    except FileExistsError:
        return
    except OSError as exc:
        raise SetupError(f"there is no store at {path}, and none can be created: {exc.strerror}") from exc


def _store_log(path: Path) -> str:
    """Rewrite the log that an earlier process left, and wait until it is on the disk.

    That process may have ended because an fsync failed. The affected pages are in the kernel's memory but not on the
    disk, and no later fsync writes them: commits after them in the log would be lost with the next power failure.

    Returns:
        Why there is no room for it; "" when it is stored, or when the file is read-only.

    Raises:
        SetupError: the disk fails.
    """
    log = path.with_name(path.name + "-wal")
    try:
        fd = os.open(log, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        # There is no log; or it cannot be written, which opening the file detects.
        return ""
    try:
        at = 0
        while part := os.pread(fd, 2**20, at):
            at += os.pwrite(fd, part, at)
        os.fsync(fd)
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"{log} cannot be stored: the disk is full, free some space"
        if exc.errno == errno.EROFS:
            return ""
        raise SetupError(
            f"{log} cannot be stored: {exc.strerror}. See the kernel's log (`dmesg`) for the cause, then start again"
        ) from exc
    finally:
        os.close(fd)
    return ""


def sync_directory(path: Path) -> None:
    """Wait until the entries of a directory are on the disk. Raises: OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _refuse_damage(exc: sqlite3.Error, path: Path) -> Exception:
    meant = translate(exc, path)
    if isinstance(meant, SetupError):
        raise meant from exc
    return exc


def _begin(connection: sqlite3.Connection, path: Path, mode: str) -> Opened:
    _check_head(connection, path)
    version, newest = schema(connection), newest_schema()
    if not version:
        # These two must be set before the first table is created.
        connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("PRAGMA journal_mode = WAL").fetchall()
    if version > newest:
        raise SetupError(
            f"{path} was written by a newer mesh: its schema is {version}, but this version supports {newest} at most. "
            "Install the newer version again, or restore a backup that this version can read"
        )
    if version:
        _check_sound(connection, path)
        if mode == "rw":
            # A restored backup is a single file without a log.
            connection.execute("PRAGMA journal_mode = WAL").fetchall()
    if version == newest:
        reason = "" if mode == "rw" else "its disk is read-only"
        return Opened(connection, *_probe(connection, path)) if not reason else Opened(connection, False, reason)
    try:
        migrate(connection, version)
    except sqlite3.Error as exc:
        raise SetupError(
            f"{path}: its schema cannot be migrated from {version} to {newest}: {exc}. Free some space or correct its "
            "permissions, and start again; the file was not changed"
        ) from exc
    return Opened(connection, True)


def _check_head(connection: sqlite3.Connection, path: Path) -> None:
    """Raises: SetupError: the file is a database, but not a store's."""
    if not schema(connection):
        tables = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
        if tables:
            raise SetupError(
                f"{path} is a database, but not a store of mesh: set another directory in mesh.toml, [store] dir"
            )
    elif connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        raise SetupError(f"{path} is a database of another program: set another directory in mesh.toml, [store] dir")


def _check_sound(connection: sqlite3.Connection, path: Path) -> None:
    """Raises: Damaged."""
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    if pages * PAGE_BYTES > CHECKED_BYTES:
        return
    found = connection.execute("PRAGMA quick_check(3)").fetchall()
    if found != [("ok",)]:
        raise damaged(path, "; ".join(str(row[0]) for row in found).replace("\n", "; "))


def _probe(connection: sqlite3.Connection, path: Path) -> tuple[bool, str]:
    """Whether the file is writable: SQLite opens a file that it cannot write without an error."""
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("UPDATE marks SET value = value WHERE name = 'seq'")
    except sqlite3.Error as exc:
        meant = translate(exc, path)
        if not isinstance(meant, Unwritable):
            raise
        return False, meant.message
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
    return True, ""


# --- the schema's version -------------------------------------------------------------------------------------


def schema(connection: sqlite3.Connection) -> int:
    """The version of a file's schema; 0 for a new one."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def newest_schema() -> int:
    """The version that this code is written for."""
    return statements.migrations()[-1][0]


def migrate(connection: sqlite3.Connection, version: int, steps: list[tuple[int, str]] | None = None) -> None:
    """Apply the migrations after a version in one transaction: after a crash either all are applied, or none."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        for number, script in steps if steps is not None else statements.migrations():
            if number > version:
                for statement in statements.split(script):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {number:d}")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID:d}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def pragma(connection: sqlite3.Connection, name: str) -> Any:
    """The value of a pragma."""
    return connection.execute(f"PRAGMA {name}").fetchone()[0]
