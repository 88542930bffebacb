"""The identity of the store in a directory, recorded outside of it, so that an emptied directory is detected.

Owns: the store's id in its file, the note of that id beside the directory, and rejecting a mismatch.
Leaves to others: opening the file (file), the CLI (mesh.cli.commands.store).

The note of the directory `data` is the file `data.id` beside it, one line with the id. It prevents starting with an
empty store when a disk is not mounted, a directory was emptied, or a host was set up again together with its note.
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
    """The path of the note for this directory."""
    return dir.with_name(f"{dir.name}.id")


def noted(dir: Path) -> str:
    """The noted id; "" for none."""
    try:
        return note_of(dir).read_text("ascii").strip()
    except (OSError, ValueError):
        return ""


def note(dir: Path, id: str) -> None:
    """Note the id beside the directory, durably. Raises: OSError."""
    path = note_of(dir)
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    # Left by a killed process with the same pid: in a container the pid is always the same.
    new.unlink(missing_ok=True)
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        # Not os.write: that may write a part only.
        with os.fdopen(fd, "wb") as file:
            file.write(f"{id}\n".encode("ascii"))
            file.flush()
            os.fsync(fd)
        os.replace(new, path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def expect(dir: Path) -> None:
    """Check the note before the file is opened or created.

    Raises:
        WrongStore: there is no file, but there was a store.
    """
    id = noted(dir)
    if id and not _holds_store(dir / FILE):
        raise WrongStore(
            f"{dir} holds no store, but there was one before ({note_of(dir)} notes its id, {id}): nothing was started, "
            f"so that no empty store takes its place. Mount its disk, move the directory back, or copy a backup to "
            f"{dir / FILE}; or start with an empty store: `mesh store init --replace`"
        )


def settle(connection: sqlite3.Connection, dir: Path, *, writable: bool, replace: bool = False) -> str:
    """After the file was opened: return the id of its store; make one if missing, and note it.

    Args:
        replace: accept this store even if another id was noted.

    Raises:
        WrongStore: another store's id is noted.
    """
    row = connection.execute(_SQL["find"], ("id",)).fetchone()
    id = str(row[0]) if row is not None else ""
    before = noted(dir)
    if not id and writable:
        # The noted id may be that of this store: a restored backup of an older release has no id of its own.
        id = before if before and not replace else secrets.token_hex(8)
        try:
            connection.execute(_SQL["put"], ("id", id))
        except sqlite3.Error as exc:
            if not isinstance(translate(exc, dir / FILE), Unwritable):
                raise
            # Continue read-only; the next start makes an id.
            return ""
    if before and before != id and not replace:
        raise WrongStore(
            f"{dir} holds the store {id or 'without an id'}, but previously it held {before} ({note_of(dir)}). Put the "
            "right directory, disk or backup in its place; or continue with the present one: `mesh store init "
            "--replace`"
        )
    if id and before != id:
        try:
            note(dir, id)
        except OSError as exc:
            log.warning(
                "store.id_unrecorded",
                note=str(note_of(dir)),
                reason=exc.strerror,
                remedy="make the file writable: without it, an empty data directory is not detected",
            )
    return id


def _holds_store(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except OSError:
        return False
