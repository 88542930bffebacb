"""Opens the files of one directory for HTTP, and nothing outside of it.

Owns: finding the file of a path, and what is never opened. Runs in a thread: everything here may wait for a disk.
Leaves to others: the header fields (file_types, ranges), sending (mounts.static).

The directory is opened anew for every file, so that a release that replaces it takes effect at once, and every step of
the path is opened relative to the one before, without following symbolic links. A link that stays inside of the
directory is resolved, and its target opened in the same way: no change of the tree while it is walked leads outside.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from mesh.gateway.file_types import CODINGS

#: The page of a directory.
INDEX: Final = "index.html"
#: The only name with a leading dot that is served, at the top: RFC 8615.
_WELL_KNOWN: Final = ".well-known"

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
#: O_NONBLOCK: opening a FIFO must not wait for its writer.
_FILE: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NOCTTY
_MISSING: Final = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.ENXIO}
)

#: A neighbour that is older than the file by more than this is left over from an earlier build.
NEIGHBOUR_OLDER_NS: Final = 2 * 10**9


class File(NamedTuple):
    """An open file, which the caller closes.

    Attributes:
        fd: the descriptor.
        path: below the directory, "assets/app.js".
        size: bytes.
        modified_ns: when it was last modified, in nanoseconds since the epoch.
        coding: the Content-Encoding of a compressed neighbour; "" for the file itself.
        varies: there are compressed neighbours, so that the answer depends on Accept-Encoding.
    """

    fd: int
    path: str
    size: int
    modified_ns: int
    coding: str = ""
    varies: bool = False

    @property
    def etag(self) -> str:
        """The entity tag: another one whenever the file is written anew, and for each coding."""
        return f'"{self.modified_ns:x}-{self.size:x}{"-" + self.coding if self.coding else ""}"'

    def is_unchanged(self) -> bool:
        """Whether the file still is what it was when it was opened."""
        now = os.fstat(self.fd)
        return now.st_mtime_ns == self.modified_ns and now.st_size == self.size

    def close(self) -> None:
        """Close it."""
        os.close(self.fd)


class IsDirectory(Exception):
    """The path is a directory with an index page, but has no slash at its end."""


def is_hidden(segments: Sequence[str]) -> bool:
    """Whether a path has a name with a leading dot, other than /.well-known."""
    return any(segment.startswith(".") and (at or segment != _WELL_KNOWN) for at, segment in enumerate(segments))


class Directory:
    """One directory of files that are served.

    Args:
        path: the directory; it may be a symbolic link itself, as to the current release.
    """

    def __init__(self, path: Path) -> None:
        self._path = str(path)

    def open(self, segments: Sequence[str], codings: Sequence[tuple[str, str]], *, slash: bool) -> File | None:
        """The file of a path, or its compressed neighbour.

        Args:
            segments: decoded, and free of "", "." and "..".
            codings: those that the client accepts, the preferred one first.
            slash: the path ends with a slash: it is the index page of a directory.

        Returns:
            None when there is no such regular file, or it cannot be read.

        Raises:
            IsDirectory: there is an index page below the path.
            OSError: the system failed, as with too many open files.
        """
        if is_hidden(segments):
            return None
        names = [*segments, INDEX] if slash else list(segments)
        try:
            root = os.open(self._path, _DIRECTORY)
        except OSError as exc:
            if _is_missing(exc):
                return None
            raise
        try:
            if not names:
                self._check_index(root, names)
                return None
            opened = self._walk(root, names)
            if opened is None:
                return None
            parent, fd, name = opened
            try:
                if stat.S_ISDIR(os.fstat(fd).st_mode):
                    os.close(fd)
                    self._check_index(root, names)
                    return None
                return _choose(parent, fd, name, "/".join(names), codings)
            finally:
                os.close(parent)
        finally:
            os.close(root)

    def _check_index(self, root: int, names: Sequence[str]) -> None:
        """Raises:
        IsDirectory: the directory has an index page.
        """
        index = self._walk(root, [*names, INDEX])
        if index is not None:
            os.close(index[0])
            os.close(index[1])
            raise IsDirectory

    def _walk(self, root: int, names: Sequence[str], *, links: bool = True) -> tuple[int, int, str] | None:
        """Open a path without following links: its directory, the file, and its name there.

        Args:
            links: a path with links is resolved, once.
        """
        parent = os.dup(root)
        try:
            for name in names[:-1]:
                inner = os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
                os.close(parent)
                parent = inner
            return parent, os.open(names[-1], _FILE, dir_fd=parent), names[-1]
        except OSError as exc:
            os.close(parent)
            # A link in the middle of a path is no directory (ENOTDIR), and at its end a loop (ELOOP).
            if links and exc.errno in (errno.ELOOP, errno.ENOTDIR):
                resolved = self._resolve(names)
                if resolved is not None:
                    return self._walk(root, resolved, links=False)
            if _is_missing(exc):
                return None
            raise

    def _resolve(self, names: Sequence[str]) -> list[str] | None:
        """The path without links; None when it has none, or leaves the directory."""
        base = os.path.realpath(self._path)
        found = os.path.realpath(os.path.join(base, *names))
        if not found.startswith(base + os.sep):
            return None
        resolved = found[len(base) + 1 :].split(os.sep)
        return None if resolved == list(names) or is_hidden(resolved) else resolved


def _choose(parent: int, fd: int, name: str, path: str, codings: Sequence[tuple[str, str]]) -> File | None:
    """The file or its neighbour; closes `fd` unless it is the result's."""
    keep = False
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            return None
        for coding, ending in codings:
            neighbour = _neighbour(parent, name + ending, found)
            if neighbour is not None:
                return neighbour._replace(path=path, coding=coding, varies=True)
        varies = any(_exists(parent, name + ending) for _, ending in CODINGS)
        keep = True
        return File(fd, path, found.st_size, found.st_mtime_ns, varies=varies)
    finally:
        if not keep:
            os.close(fd)


def _neighbour(parent: int, name: str, of: os.stat_result) -> File | None:
    try:
        fd = os.open(name, _FILE, dir_fd=parent)
    except OSError as exc:
        if _is_missing(exc):
            return None
        raise
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_mtime_ns < of.st_mtime_ns - NEIGHBOUR_OLDER_NS:
        os.close(fd)
        return None
    return File(fd, name, found.st_size, found.st_mtime_ns)


def _exists(parent: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=parent, follow_symlinks=False)
    except OSError:
        return False
    return True


def _is_missing(exc: OSError) -> bool:
    """Whether an error means "no such file"; others are the system's."""
    return exc.errno in _MISSING
