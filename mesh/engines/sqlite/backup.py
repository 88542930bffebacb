"""Copying and checking the file, in a thread of its own, while the store keeps running.

Owns: copying a snapshot, checking the copy, and the invariants between the tables.
Leaves to others: when (people, by `mesh store backup` and `mesh store check`).

Both use a read-only connection of their own: it sees the file as it was when its transaction began. Meanwhile the
write-ahead log cannot be reset, and grows with each write.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from mesh.engines.sqlite import partials, statements
from mesh.engines.sqlite.disk import translate
from mesh.engines.sqlite.file import connect, read_only_modes, schema, sync_directory
from mesh.errors import SetupError

_SQL: Final = statements.named("check")

#: Memory for pages; each is read once.
_CACHE_BYTES: Final = 4 * 2**20


class Backup(NamedTuple):
    """A copy that was made: where, how large, of which version of the schema, and how long it took."""

    path: Path
    size_bytes: int
    schema: int
    seconds: float


def backup(source: Path, path: Path, *, overwrite: bool = False) -> Backup:
    """See Core.backup."""
    began = time.monotonic()
    path = Path(os.path.abspath(path))
    if path.is_dir():
        raise SetupError(f"{path} is a directory: give the path of a file for the backup")
    if path.exists() and not overwrite:
        raise SetupError(f"{path} already exists: give another path, or allow the backup to overwrite it")
    with contextlib.suppress(OSError):
        if path.exists() and path.samefile(source):
            raise SetupError(f"{path} is the store's own file: give another path for the backup")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        partials.remember(source.parent, path.parent)
        partials.clean(path.parent)
        with partials.partial(path) as partial:
            version = _copy(source, partial)
            _sync(partial)
            if overwrite:
                os.replace(partial, path)
            else:
                # Unlike a rename, it fails if another program made the file meanwhile.
                os.link(partial, path)
            sync_directory(path.parent)
        return Backup(path, path.stat().st_size, version, time.monotonic() - began)
    except OSError as exc:
        raise SetupError(f"no backup was made at {path}: {exc.strerror or exc}") from exc
    except sqlite3.Error as exc:
        raise SetupError(
            f"no backup was made at {path}: {exc}; check free space and permissions of its directory"
        ) from exc


def _copy(source: Path, partial: Path) -> int:
    """Copy and check; return the version of the schema."""
    with _reading(source) as reading, contextlib.closing(sqlite3.connect(partial, isolation_level=None)) as copy:
        reading.backup(copy)
        # A single file, without a write-ahead log.
        copy.execute("PRAGMA journal_mode = DELETE").fetchall()
        wrong = _check(copy)
        if wrong:
            raise SetupError(f"the copy of {source} is corrupt and was deleted: {'; '.join(wrong[:3])}")
        return schema(copy)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def check(source: Path) -> list[str]:
    """See Core.check."""
    try:
        with _reading(source) as reading:
            return _check(reading)
    except sqlite3.Error as exc:
        meant = translate(exc, source)
        return [meant.message if meant is not None else str(exc)]


@contextlib.contextmanager
def _reading(source: Path) -> Iterator[sqlite3.Connection]:
    """A connection that sees a snapshot of the file as it is now."""
    connection = _connect(source)
    try:
        yield connection
    finally:
        connection.close()


def _connect(source: Path) -> sqlite3.Connection:
    failure: sqlite3.Error | None = None
    for mode in read_only_modes(source):
        try:
            connection = connect(source, _CACHE_BYTES, mode=mode)
        except sqlite3.Error as exc:
            failure = failure or exc
            continue
        try:
            connection.execute("BEGIN")
            connection.execute("SELECT count(*) FROM marks").fetchall()
        except sqlite3.Error as exc:
            connection.close()
            failure = failure or exc
        else:
            return connection
    assert failure is not None
    raise failure


def _check(connection: sqlite3.Connection) -> list[str]:
    """Check the structure and the invariants between the tables; return the problems."""
    found = [row[0] for row in connection.execute("PRAGMA integrity_check(20)").fetchall()]
    wrong = [text for text in found if text != "ok"]
    if not wrong:
        for name, statement in _SQL.items():
            (count,) = connection.execute(statement).fetchone()
            if count:
                wrong.append(f"{name.replace('_', ' ')}: {count}")
    return wrong
