"""The content of a small file, which follows the disk: keys of a provider, hashes of API keys and passwords.

Owns: when to look at the file again, and keeping the last good content when the new one is broken.
Leaves to others: the content (its reader), changing files (mesh.gateway.edge.auth.credential_file).

The file is looked at when it is used, at most once per INTERVAL_S: one stat, without a task of its own.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final, Generic, TypeVar

from mesh.clock import Clock
from mesh.errors import ConfigError
from mesh.telemetry.logs import get_logger

_log = get_logger("mesh.gateway")

#: How long a change may go unnoticed, in seconds.
INTERVAL_S: Final = 1.0
#: The largest file, in bytes: 20,000 API keys.
MAX_BYTES: Final = 8 * 2**20

T = TypeVar("T")
_Stamp = tuple[int, int, int, int]


class WatchedFile(Generic[T]):
    """The content of one file.

    Args:
        key: the setting that names it, for errors.
        read: makes the content of its bytes; raises ValueError.
        private: other users of the machine must not be able to read it.
        missing: the remedy when there is no such file.

    Attributes:
        version: grows when the content changes.

    Raises:
        ConfigError: it cannot be read, or others may change it.
    """

    def __init__(
        self,
        path: Path,
        key: str,
        read: Callable[[bytes], T],
        clock: Clock,
        *,
        private: bool = False,
        missing: str = "",
    ) -> None:
        self._path = path
        self._key = key
        self._read = read
        self._clock = clock
        self._private = private
        self._missing = missing
        self.version = 0
        self._stamp, self._content = self._load()
        self._next_at = clock.now() + INTERVAL_S

    def content(self) -> T:
        """The content, at most INTERVAL_S old; the last good one while the file is broken or missing."""
        now = self._clock.now()
        if now >= self._next_at:
            self._next_at = now + INTERVAL_S
            self._look()
        return self._content

    def _look(self) -> None:
        try:
            found = os.stat(self._path)
            stamp = _stamp_of(found)
        except OSError:
            stamp = (0, 0, 0, 0)
        if stamp == self._stamp:
            return
        # Also when it is broken: one line in the log for each change, not one for each second.
        self._stamp = stamp
        try:
            self._stamp, self._content = self._load()
        except ConfigError as exc:
            _log.error("auth.file_rejected", file=str(self._path), reason=exc.message)
            return
        self.version += 1
        _log.info("auth.file_read", file=str(self._path), setting=self._key)

    def _load(self) -> tuple[_Stamp, T]:
        where = f"{self._key}: {self._path}: "
        try:
            # O_NONBLOCK: if the path is a named pipe, opening it must not wait for a writer.
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            remedy = f"; {self._missing}" if self._missing else ""
            raise ConfigError(f"{where}there is no such file{remedy}") from None
        except OSError as exc:
            raise ConfigError(f"{where}{exc.strerror}") from exc
        with open(fd, "rb") as file:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise ConfigError(f"{where}is not a regular file")
            unwanted = stat.S_IWGRP | (stat.S_IRWXO if self._private else stat.S_IWOTH)
            if found.st_mode & unwanted:
                mode = f"{stat.S_IMODE(found.st_mode):04o}"
                verb = "read or change" if self._private else "change"
                raise ConfigError(f"{where}other users can {verb} it (mode {mode}): chmod 600 {self._path}")
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ConfigError(f"{where}has more than {MAX_BYTES} bytes")
        try:
            return _stamp_of(found), self._read(data)
        except ValueError as exc:
            raise ConfigError(f"{where}{exc}") from None


def _stamp_of(found: os.stat_result) -> _Stamp:
    # The inode changes when the file is replaced, the change time also when only its mode is corrected.
    return found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size
