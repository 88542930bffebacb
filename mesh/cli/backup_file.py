"""Moves a backup from the store's directory of backups to the place that the operator chose.

Owns: moving the file as the operator's own user, without overwriting an existing file unless requested.
Leaves to others: making the backup (the store), options and output (store).
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from pathlib import Path

from mesh.errors import SetupError


def check_target(path: Path, *, overwrite: bool) -> None:
    """Check the target before the store makes a backup.

    Raises:
        SetupError: no backup can go there.
    """
    if path.is_dir():
        raise SetupError(f"{path} is a directory: name a file in it for the backup")
    if os.path.lexists(path) and not overwrite:
        raise SetupError(f"{path} exists already; --overwrite replaces it")


def move(source: Path, path: Path, *, size_bytes: int, overwrite: bool) -> None:
    """Move a finished backup to `path`; its directory is created (mode 0700) when it does not exist.

    Args:
        source: in the directory that this configuration names, whatever the store answered.
        size_bytes: the size that the store reports.

    Raises:
        SetupError: `source` is not the file that the store made, or cannot be moved; it is left in place.
    """
    try:
        seen = os.lstat(source)
    except OSError as exc:
        raise SetupError(
            f"the backup is not at {source}: {exc.strerror or exc}. Omit PATH, and copy it from the store's host"
        ) from exc
    if not stat.S_ISREG(seen.st_mode) or seen.st_size != size_bytes:
        raise SetupError(f"{source} is not the file that the store wrote; nothing was moved")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            _place(source, path, overwrite)
        except OSError as exc:
            if exc.errno not in (errno.EXDEV, errno.EPERM):
                raise
            # Another file system, or a file system without hard links.
            _copy(source, path, overwrite)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(source)
    except OSError as exc:
        raise SetupError(f"the backup stays at {source}: {path}: {exc.strerror or exc}") from exc


def _place(source: Path, path: Path, overwrite: bool) -> None:
    """Give a file on the same file system its final name, atomically."""
    if overwrite:
        os.replace(source, path)
    else:
        # Unlike a rename, a link fails if the file was created meanwhile, and follows no symbolic link.
        os.link(source, path, follow_symlinks=False)
    directory = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _copy(source: Path, path: Path, overwrite: bool) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as target, open(source, "rb") as data:
            shutil.copyfileobj(data, target, 1024 * 1024)
            target.flush()
            os.fsync(target.fileno())
        try:
            _place(partial, path, overwrite)
        except OSError as exc:
            if exc.errno != errno.EPERM:
                raise
            if os.path.lexists(path):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from exc
            os.rename(partial, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)
