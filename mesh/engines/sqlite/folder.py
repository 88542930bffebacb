"""The folder of the store: one process at a time, and nobody else may look.

Owns: the lock on it, its mode, and naming who has it.
Leaves to others: the file in it (file).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import Final

from mesh.errors import SetupError

#: Says which process has the folder. Only a hint for people: what counts is the lock, which dies with its process.
PID_FILE: Final = "store.pid"
#: The pid of the store that waits for the folder. A hint as well, believed only of a process that runs.
NEXT_FILE: Final = "next.pid"


class FolderTaken(SetupError):
    """Another process has the folder."""


class Folder:
    """A folder, and this process's lock on it while it is taken."""

    def __init__(self, dir: Path) -> None:
        self.dir: Final = dir
        self._fd = -1

    def take(self) -> None:
        """Lock it; made with mode 0700 when it is not there. One that others may look into is closed to them.

        Raises:
            FolderTaken: another process has it.
            SetupError: there is none, and none can be made.
        """
        try:
            self._make()
            fd = os.open(self.dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as exc:
            raise SetupError(
                f"the store's folder {self.dir} cannot be used: {exc.strerror}. Make room or mend the rights there, or "
                "name another folder in mesh.toml, [store] dir"
            ) from exc
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            os.close(fd)
            if not isinstance(exc, BlockingIOError):
                raise SetupError(f"{self.dir} cannot be locked: {exc.strerror}; use a local file system") from exc
            raise FolderTaken(
                f"{self.dir} belongs to {self._owner()}: one store at a time has a folder. Stop that one, or name "
                "another folder in mesh.toml, [store] dir"
            ) from None
        self._fd = fd
        # On a disk that takes nothing the store is to be read all the same.
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
        # SQLite sees to what is in the folder; that there is one must outlive a loss of power, too.
        for made in reversed(missing):
            parent = os.open(made.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(parent)
            finally:
                os.close(parent)

    def leave(self) -> None:
        """Unlock it. Harmless the second time."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.unlink(PID_FILE, dir_fd=self._fd)
            os.close(self._fd)
            self._fd = -1

    def _write_pid(self) -> None:
        fd = os.open(PID_FILE, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600, dir_fd=self._fd)
        try:
            os.write(fd, b"%d\n" % os.getpid())
        finally:
            os.close(fd)

    def _owner(self) -> str:
        pid = owner(self.dir)
        return f"the process with pid {pid}" if pid else "another process (its pid is not known)"


def owner(dir: Path) -> int:
    """The pid of the process that says it has this folder; 0 when none does."""
    return _pid_in(dir / PID_FILE)


def waits_for(dir: Path) -> int:
    """The pid of the process that says it waits for this folder; 0 when none does."""
    return _pid_in(dir / NEXT_FILE)


def _pid_in(path: Path) -> int:
    try:
        return int(path.read_text("ascii"))
    except (OSError, ValueError):
        return 0
