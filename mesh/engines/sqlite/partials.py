"""Unfinished copies: locked while they are made, and removed when their process has died.

Owns: the names of unfinished copies, the directories with copies, and removing the files of killed processes.
Leaves to others: copying (backup), when to clean (core: at the start, and before each copy).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

#: In the store's directory: the directories to which copies were made, one per line.
DIRECTORIES: Final = "backup-directories"
MOST_DIRECTORIES: Final = 32

_PARTIAL: Final = re.compile(r"\..+\.\d+\.partial(?P<beside>-journal|-wal|-shm)?")
_BESIDE: Final = ("-journal", "-wal", "-shm")


@contextlib.contextmanager
def partial(path: Path) -> Iterator[Path]:
    """A new file beside `path` to make the copy in; removed at the end, unless it was renamed.

    Raises: OSError.
    """
    made = path.with_name(f".{path.name}.{os.getpid()}.partial")
    fd = os.open(made, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield made
    finally:
        for beside in ("", *_BESIDE):
            with contextlib.suppress(OSError):
                os.unlink(f"{made}{beside}")
        os.close(fd)


def clean(dir: Path) -> list[str]:
    """Remove the unfinished copies of killed processes in this directory; return their names.

    Never removes a copy that is being made, a file of another user, or the target of a symbolic link.
    """
    removed = []
    try:
        folder = os.open(dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return []
    try:
        names = sorted(name for name in os.listdir(folder) if _PARTIAL.fullmatch(name))
        for name in names:
            found = _PARTIAL.fullmatch(name)
            # Files beside a copy are removed with it, or when the copy no longer exists.
            if found is None or (found["beside"] and name.removesuffix(found["beside"]) in names):
                continue
            if _remove(folder, name):
                removed.append(name)
                removed += [f"{name}{beside}" for beside in _BESIDE if _remove(folder, f"{name}{beside}")]
    finally:
        os.close(folder)
    return removed


def _remove(folder: int, name: str) -> bool:
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        return False
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            return False
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        named = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if (named.st_dev, named.st_ino) != (found.st_dev, found.st_ino):
            return False
        os.unlink(name, dir_fd=folder)
    except OSError:
        return False
    else:
        return True
    finally:
        os.close(fd)


def remember(data: Path, dir: Path) -> None:
    """Record the directory of a copy, for cleaning at the next start."""
    known = directories(data)
    if dir in known:
        return
    lines = "".join(f"{each}\n" for each in [*known, dir][-MOST_DIRECTORIES:] if "\n" not in str(each))
    new = data / f".{DIRECTORIES}.{os.getpid()}.new"
    # A full disk must not prevent a copy to another disk.
    with contextlib.suppress(OSError):
        new.unlink(missing_ok=True)
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(os.fsencode(lines))
        os.replace(new, data / DIRECTORIES)


def directories(data: Path) -> list[Path]:
    """The recorded directories."""
    try:
        return [Path(os.fsdecode(line)) for line in (data / DIRECTORIES).read_bytes().splitlines()]
    except OSError:
        return []
