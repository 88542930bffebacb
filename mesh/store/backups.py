"""The store's directory of backups: the only place on its host where a caller can make it write.

Owns: the valid names of backups, the directory, and that nothing in it is overwritten.
Leaves to others: copying (engines.sqlite.backup), authorization (admission), moving the copy elsewhere (cli, as the
operator's own user).
"""

from __future__ import annotations

import os
import re
import stat
import time
from pathlib import Path
from typing import Final

from mesh.clock import Clock
from mesh.engines.sqlite.core import Core
from mesh.engines.sqlite.messages import BackupInfo
from mesh.errors import BadRequest, SetupError
from mesh.store.aside import in_thread

#: A bare file name: no directory, no hidden file, no character that is special in a shell or a terminal.
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


class Backups:
    """The backups of one store."""

    def __init__(self, core: Core, directory: Path, clock: Clock, host: str) -> None:
        """`directory`: [store] backups; created with mode 0700 for the first backup."""
        self._core = core
        self._directory = directory
        self._clock = clock
        self._host = host
        self._making: set[str] = set()

    async def make(self, name: str = "") -> BackupInfo:
        """Copy a snapshot of the data to a new file.

        Args:
            name: of the file; "" for a name made from the time.

        Raises:
            BadRequest: the name is not a valid file name, or a backup of this name is being made.
            SetupError: the file exists, the directory cannot be used, or the copy failed.
        """
        name = name or _stamped(self._clock.wall())
        if not _NAME.fullmatch(name):
            raise BadRequest(
                f"{name[:100]!r} is not a valid name of a backup: use letters, digits and . _ - (200 at most, no "
                f"directory). It is written to {self._directory}, which is set by [store] backups"
            )
        if name in self._making:
            raise BadRequest(f"backup {name!r} is already being made")
        self._making.add(name)
        try:
            made = await in_thread(lambda: self._core.backup(self._place(name)))
        finally:
            self._making.discard(name)
        return BackupInfo(
            path=str(made.path),
            size_bytes=made.size_bytes,
            schema=made.schema,
            seconds=made.seconds,
            host=self._host,
        )

    def _place(self, name: str) -> Path:
        directory = self._directory
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            seen = directory.stat()
        except OSError as exc:
            raise SetupError(f"store.backups: {directory}: {exc.strerror or exc}; set a directory for backups") from exc
        # A user with write access there could place a link under the next name.
        if seen.st_uid not in (os.geteuid(), 0) or stat.S_IMODE(seen.st_mode) & 0o022:
            raise SetupError(
                f"store.backups: other users can write to {directory}: `chmod go-w` it, or set another directory"
            )
        return directory / name


def _stamped(wall: float) -> str:
    """ "mesh-20261130T080915.042Z.db"."""
    return f"mesh-{time.strftime('%Y%m%dT%H%M%S', time.gmtime(wall))}.{int(wall * 1000) % 1000:03d}Z.db"
