"""Which store a directory holds, remembered outside of it, so that an emptied one is not taken for a new one.

Owns: the store's id in its file, the note of that id beside the directory, and refusing what does not fit together.
Leaves to others: opening the file (file), the commands of people (mesh.cli.store).

The note of the directory `data` is the file `data.id` beside it, one line with the id. A disk that is not mounted, a
directory that was emptied, or a host that was set up anew with its note thus does not begin with an empty store.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
from pathlib import Path
from typing import Final

from mesh.engines.sqlite import statements
from mesh.engines.sqlite.disk import Damaged, translate
from mesh.engines.sqlite.file import FILE, sync_directory
from mesh.errors import Unwritable
from mesh.telemetry.logs import get_logger

log = get_logger("mesh.store")

_SQL: Final = statements.named("facts")


class WrongStore(Damaged):
    """The directory is empty although there was a store, or holds another store than before."""

    code = "wrong_store"


def note_of(dir: Path) -> Path:
    """Where the id of the store in this directory is noted."""
    return dir.with_name(f"{dir.name}.id")


def noted(dir: Path) -> str:
    """The id that is noted; "" when none is."""
    try:
        return note_of(dir).read_text("ascii").strip()
    except (OSError, ValueError):
        return ""


def note(dir: Path, id: str) -> None:
    """Note the id beside the directory, durably. Raises: OSError."""
    path = note_of(dir)
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    # Of a process that was killed here and had this pid: in a container it is always the same.
    new.unlink(missing_ok=True)
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            os.write(fd, f"{id}\n".encode("ascii"))
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(new, path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def expect(dir: Path) -> None:
    """Before the file is opened, and made when it is not there.

    Raises:
        WrongStore: there is none, and there was one.
    """
    id = noted(dir)
    if id and not _holds_store(dir / FILE):
        raise WrongStore(
            f"{dir} holds no store, but there was one before ({note_of(dir)} notes its id, {id}): nothing was started, "
            f"so that no empty store takes its place. Mount its disk, move the directory back, or copy a backup to "
            f"{dir / FILE}; or begin with an empty store: `mesh store init --replace`"
        )


def settle(connection: sqlite3.Connection, dir: Path, *, writable: bool, replace: bool = False) -> str:
    """After the file was opened: the id of its store, made when it has none, and noted when it was not.

    Args:
        replace: whatever was noted before, it is this store from now on.

    Raises:
        WrongStore: another store's id is noted.
    """
    row = connection.execute(_SQL["find"], ("id",)).fetchone()
    id = str(row[0]) if row is not None else ""
    before = noted(dir)
    if not id and writable:
        # What was noted before may be the id of this store, from which a backup of an older release was restored.
        id = before if before and not replace else secrets.token_hex(8)
        try:
            connection.execute(_SQL["put"], ("id", id))
        except sqlite3.Error as exc:
            if not isinstance(translate(exc, dir / FILE), Unwritable):
                raise
            # Reading goes on; the next start makes one.
            return ""
    if before and before != id and not replace:
        raise WrongStore(
            f"{dir} holds the store {id or 'without an id'}, but before it held {before} ({note_of(dir)}). Put the "
            "right directory, disk or backup in its place; or go on with what is there: `mesh store init --replace`"
        )
    if id and before != id:
        try:
            note(dir, id)
        except OSError as exc:
            log.warning(
                "the store's id cannot be noted beside its directory, so an empty directory would not be noticed",
                note=str(note_of(dir)),
                reason=exc.strerror,
            )
    return id


def _holds_store(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except OSError:
        return False
