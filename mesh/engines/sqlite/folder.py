"""The folder of the store: used by one process at a time, and readable by its user only.

Owns: the lock on it, its mode, and naming the process that has it.
Leaves to others: the file in it (file).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import Final

from mesh.errors import SetupError

#: The pid of the process that has the folder. Only a hint for people: the lock decides, and ends with its process.
PID_FILE: Final = "store.pid"
#: The pid of the store that waits for the folder. Also a hint, ignored unless that process runs.
NEXT_FILE: Final = "next.pid"


class FolderTaken(SetupError):
    """Another process has the folder."""


class Folder:
    """A folder, and this process's lock on it."""

    def __init__(self, dir: Path) -> None:
        self.dir: Final = dir
        self._fd = -1

    def take(self) -> None:
        """Lock the folder; create it with mode 0700 if missing. Remove any access by other users.

        Raises:
            FolderTaken: another process has it.
            SetupError: there is none, and none can be created.
        """
        try:
            self._make()
            fd = os.open(self.dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as exc:
            raise SetupError(
                f"the store's directory {self.dir} cannot be used: {exc.strerror}. Free some space or correct its "
                "permissions, or set another directory in mesh.toml, [store] dir"
            ) from exc
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            os.close(fd)
            if not isinstance(exc, BlockingIOError):
                raise SetupError(f"{self.dir} cannot be locked: {exc.strerror}; use a local file system") from exc
            raise FolderTaken(
                f"{self.dir} is in use by {self._owner()}: a directory has one store at a time. Stop that one, or "
                "set another directory in mesh.toml, [store] dir"
            ) from None
        self._fd = fd
        # On a read-only disk the store must still be readable.
        with contextlib.suppress(OSError):
            if os.fstat(fd).st_mode & 0o077:
                os.fchmod(fd, 0o700)
        with contextlib.suppress(OSError):
            self._write_pid()

    def _make(self) -> None:
        if self.dir.is_dir():
            return
        missing = [each for each in (self.dir, *self.dir.parents) if not each.exists()]
        self.dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        # SQLite syncs the folder's contents; its own directory entry must survive a power failure, too.
        for made in reversed(missing):
            parent = os.open(made.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(parent)
            finally:
                os.close(parent)

    def leave(self) -> None:
        """Unlock the folder. Idempotent."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.unlink(PID_FILE, dir_fd=self._fd)
            os.close(self._fd)
            self._fd = -1

    def _write_pid(self) -> None:
        fd = os.open(PID_FILE, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600, dir_fd=self._fd)
        # Not os.write: that may write a part only, which would be another process's pid.
        with os.fdopen(fd, "wb") as file:
            file.write(b"%d\n" % os.getpid())

    def _owner(self) -> str:
        pid = owner(self.dir)
        return f"the process with pid {pid}" if pid else "another process (its pid is not known)"


def owner(dir: Path) -> int:
    """The pid of the process that has this folder, by its pid file; 0 for none."""
    return _pid_in(dir / PID_FILE)


def waits_for(dir: Path) -> int:
    """The pid of the process that waits for this folder, by its pid file; 0 for none."""
    return _pid_in(dir / NEXT_FILE)


def _pid_in(path: Path) -> int:
    try:
        return int(path.read_text("ascii"))
    except (OSError, ValueError):
        return 0
