"""Notices, before a commit is confirmed, that another program has changed, truncated, replaced or removed the files.

Owns: the expected state of the files from one commit to the next, and the errors that name the problem.
Leaves to others: when to check (turn), stopping the store (mesh.store), SQLite's own errors (disk).

SQLite keeps writing to its open files even after they were removed: a commit succeeds, but its data is missing at the
next start. So each transaction checks, in some 20 microseconds:

=====================  =================================================================================
database, log, index   the path still leads to the open file (device and inode)
database               size and modification time are those after the last checkpoint, the only writer
log and index, before  unchanged since the last commit: no other program has committed
log, after             its header is the one that SQLite uses, it is not shorter than its frames, and the frame
                       before the new ones exists: writing behind the end of a truncated file leaves zeros
=====================  =================================================================================

No descriptor of the database may be opened here: closing it would drop SQLite's locks on the file (POSIX). The
descriptor of the index is closed only after SQLite has closed its own; the log is never locked.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sqlite3
import struct
import time
from pathlib import Path
from typing import Final, NamedTuple

from mesh.engines.sqlite.disk import Damaged
from mesh.engines.sqlite.file import LOG_BYTES, pragma
from mesh.engines.sqlite.log_watch import LogWatch

#: Bytes of the log's header, and of the header of a frame; a frame is its header and one page.
_LOG_HEAD: Final = 32
_FRAME_HEAD: Final = 24
#: So many bytes of the end of a frame are remembered; see `Guard._trace`.
_TAIL: Final = 64
#: The header of the index; see `Index`. https://sqlite.org/walformat.html, "The WAL-Index File Format".
_INDEX: Final = struct.Struct("=8xI4xII8x8s")
_BACKFILLED_AT: Final = 96
#: A directory that has had the same times for so long has not changed since they were first seen. File systems record
#: times in steps of up to ten milliseconds, so younger times may hide a second change.
_QUIET_NS: Final = 50_000_000

#: Device, inode, size, modification time.
Stamp = tuple[int, int, int, int]

_OTHER: Final = (
    "another program did this while the store was running, and the store has stopped before anything was confirmed "
    "that could be lost. Find that program; "
)


class Index(NamedTuple):
    """The index's description of the log.

    Attributes:
        commits: counter of commits. frames: number of used frames. pages: size of the database. salts: of this log.
    """

    commits: int
    frames: int
    pages: int
    salts: bytes


_NO_INDEX: Final = Index(0, 0, 0, b"")


class Guard:
    """The files of one open connection.

    Attributes:
        frames: number of frames of the log after the last commit; 0 when unknown.
        fault: the problem that was found; "" for none.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        """`connection` must have been read from, so that SQLite has its files open.

        Raises:
            Damaged: a file was replaced while it was opened.
        """
        self._path: Final = str(path)
        self._log_path: Final = f"{path}-wal"
        self._index_path: Final = f"{path}-shm"
        self._page_bytes: Final = int(pragma(connection, "page_size"))
        self._frame_bytes: Final = _FRAME_HEAD + self._page_bytes
        self.fault = ""
        self._savable = False
        self._folder = self._log = self._index = -1
        self._watch: LogWatch | None = None
        # In exclusive locking mode (a disk without room for the index) the index is in memory.
        shared = pragma(connection, "locking_mode") == "normal"
        try:
            self._folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._database = _stamp(os.stat(self._path))
            self._log = os.open(self._log_path, os.O_RDONLY | os.O_CLOEXEC)
            self._log_is = _stamp(os.fstat(self._log))[:2]
            self._watch = LogWatch(self._log)
            if shared:
                self._index = os.open(self._index_path, os.O_RDONLY | os.O_CLOEXEC)
                self._index_is = _stamp(os.fstat(self._index))[:2]
                self._index_bytes = self._index_length()
            opened = _open_files()
            # SQLite's descriptor of the database, SQLite's and this one of the log.
            if opened and not (opened.count(self._database[:2]) >= 1 and opened.count(self._log_is) >= 2):
                raise self._error(self._path, "was replaced while the store opened it", "start the store again")
        except OSError as exc:
            self.close()
            raise self._error(
                str(exc.filename or path), f"cannot be watched ({exc.strerror})", "start the store again"
            ) from exc
        except Damaged:
            self.close()
            raise
        #: Of the directory: modification and change time, and when this pair was first seen (monotonic).
        self._folder_seen = (0, 0)
        self._folder_seen_ns = 0
        self._quiet_at = (0, 0)
        self._raw = b""
        self._known = self._read_index()
        self.frames = self._known.frames
        self._last = self._trace(self.frames)

    # --- a transaction ------------------------------------------------------------------------------------------

    def ready(self) -> None:
        """Check before a transaction. SQLite maps the index into memory, and reading behind the end of a truncated file
        kills the process (SIGBUS).

        Raises:
            Damaged: the index was truncated.
        """
        if self._index >= 0 and self._index_length() < self._index_bytes:
            raise self._error(self._index_path, "was truncated by another program", self._restore(self._index_path))

    def begun(self) -> None:
        """Check after a transaction has begun and holds SQLite's lock.

        Raises:
            Damaged: another program has written to the database or its log.
        """
        if self._head() != self._raw:
            raise self._error(
                self._path,
                "was written to by another program",
                "then check the data (`mesh store check`), and start the store again",
            )
        if self._log_watch.changed():
            raise self._log_changed()

    def committed(self) -> None:
        """Check after a transaction is in the log; it may be confirmed when this returns.

        Raises:
            Damaged: a path no longer leads to the open file, or its contents were changed.
        """
        before_bytes = self._log_watch.size
        size = self._log_watch.settle()
        # SQLite truncates a longer log to this size when it restarts the log.
        if size < before_bytes and size < LOG_BYTES:
            raise self._log_changed()
        if self._index >= 0:
            before, known = self._known, self._read_index()
            self._known = known
            self.frames = frames = known.frames
            if frames:
                if size < self._start_of(frames + 1) or self._salts(frames) != known.salts:
                    raise self._log_changed()
                at, trace = self._last
                if known.salts == before.salts and os.pread(self._log, len(trace), at) != trace:
                    raise self._log_changed()
                self._last = self._trace(frames)
        elif size and os.lseek(self._log, 0, os.SEEK_HOLE) < size:
            raise self._log_changed()
        self._look_at_names()
        if self._index < 0:
            self._database = self._stamp(self._path)

    def rolled_back(self) -> None:
        """A transaction was rolled back; parts of it may have been written to the log."""
        if not self.fault:
            self._log_watch.settle()

    def checkpointed(self) -> None:
        """SQLite has run a checkpoint, in part or completely.

        Raises:
            Damaged: the database is shorter than the data that was written to it.
        """
        if self._index >= 0:
            self._known = known = self._read_index()
            self.frames = known.frames
            self._last = self._trace(known.frames)
            (filled,) = struct.unpack("=I", os.pread(self._index, 4, _BACKFILLED_AT))
            if filled >= known.frames and self._stamp(self._path)[2] < known.pages * self._page_bytes:
                raise self._database_changed()
        self._database = self._stamp(self._path)
        self._log_watch.settle()

    def look(self) -> None:
        """Check between transactions. Raises: Damaged."""
        self._look_at_names()
        if self._log_watch.changed():
            raise self._log_changed()

    # --- the end ------------------------------------------------------------------------------------------------

    def rescue(self, connection: sqlite3.Connection) -> bool:
        """After an error: if only the log's name was lost and the database is unchanged, checkpoint the log into it.

        Returns:
            Whether everything that was ever confirmed is in the database now.
        """
        if not self._savable:
            return False
        try:
            self.ready()
            if self._stamp(self._path) != self._database:
                return False
            busy, frames, filled = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        except (OSError, sqlite3.Error, Damaged):
            return False
        return not busy and frames == filled

    def close(self) -> None:
        """Close the descriptors; the connection is closed already."""
        self._folder = self._close(self._folder)
        if self._watch is not None:
            self._watch.close()
        self._log = self._close(self._log)
        self._index = self._close(self._index)

    def keep(self, connection: sqlite3.Connection) -> None:
        """Keep a connection open instead of closing it after its files were replaced: SQLite would write its log to a
        database that may be another one, and remove a log that is not its own. The process ends soon.
        """
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))

    # --- looking ------------------------------------------------------------------------------------------------

    @property
    def _log_watch(self) -> LogWatch:
        assert self._watch is not None
        return self._watch

    def _index_length(self) -> int:
        return os.lseek(self._index, 0, os.SEEK_END)

    def _look_at_names(self) -> None:
        """Check that the paths of database, log and index still lead to the open files."""
        database = self._stamp(self._path)
        # Without an index in a file SQLite itself decides when to write to the database.
        if database != self._database and (self._index >= 0 or database[:2] != self._database[:2]):
            raise self._database_changed()
        # While the directory is unchanged, no entry in it was added, removed or replaced. The modification time alone
        # is not enough: `rsync -a` and `tar` set it back after they have replaced files. They cannot set the ctime.
        folder = os.fstat(self._folder)
        changed_at = folder.st_mtime_ns, folder.st_ctime_ns
        if changed_at == self._quiet_at:
            return
        # Until both names are found in place: if one of them is wrong, the log itself is still complete.
        self._savable = True
        if self._stamp(self._log_path)[:2] != self._log_is:
            raise self._error(self._log_path, "was replaced by another file", self._restore(self._log_path))
        if self._index >= 0 and self._stamp(self._index_path)[:2] != self._index_is:
            raise self._error(self._index_path, "was replaced by another file", self._restore(self._index_path))
        self._savable = False
        if self._index >= 0:
            self._index_bytes = self._index_length()
        now_ns = time.monotonic_ns()
        if changed_at != self._folder_seen:
            self._folder_seen, self._folder_seen_ns = changed_at, now_ns
        self._quiet_at = changed_at if now_ns - self._folder_seen_ns > _QUIET_NS else (0, 0)

    def _stamp(self, path: str) -> Stamp:
        try:
            return _stamp(os.stat(path))
        except OSError as exc:
            gone = isinstance(exc, FileNotFoundError | NotADirectoryError)
            what = "was removed, or its directory was moved" if gone else f"cannot be reached: {exc.strerror}"
            raise self._error(path, what, self._restore(path)) from exc

    def _head(self) -> bytes:
        # b"" when the index was truncated.
        return os.pread(self._index, _INDEX.size, 0) if self._index >= 0 else b""

    def _read_index(self) -> Index:
        head = self._raw = self._head()
        return Index._make(_INDEX.unpack(head)) if len(head) == _INDEX.size else _NO_INDEX

    def _start_of(self, frame: int) -> int:
        """Where a frame of the log begins, counted from 1."""
        return _LOG_HEAD + (frame - 1) * self._frame_bytes

    def _salts(self, frame: int) -> bytes:
        return os.pread(self._log, 8, self._start_of(frame) + 8)

    def _trace(self, frame: int) -> tuple[int, bytes]:
        """(position, bytes) that no longer match when the log is truncated within or before this frame and then written
        to behind its end: the end of the frame is zeros then. (0, b"") for no frame.

        A page is filled from its end, so the last bytes are rarely zeros already; then it is the whole frame.
        """
        if not frame:
            return 0, b""
        start = self._start_of(frame)
        at = start + self._frame_bytes - _TAIL
        tail = os.pread(self._log, _TAIL, at)
        # Zeros at the very end may be cut off: writing behind the end puts them back.
        return (at, tail) if tail.count(0) < _TAIL else (start, os.pread(self._log, self._frame_bytes, start))

    # --- errors -------------------------------------------------------------------------------------------------

    def _log_changed(self) -> Damaged:
        return self._error(
            self._log_path, "was truncated or written to by another program", self._restore(self._log_path)
        )

    def _database_changed(self) -> Damaged:
        same = _same_file(self._path, self._database)
        what = "was truncated, or overwritten in place" if same else "was replaced by another file"
        return self._error(self._path, what, self._restore(self._path))

    def _restore(self, path: str) -> str:
        if path == self._path:
            return (
                f"to replace it by a backup: with the store stopped, remove {self._log_path} and "
                f"{self._index_path}, copy the backup to {self._path} and start the store; otherwise move the "
                "directory or the file back, or restore a backup"
            )
        return (
            "move the directory or the file back if it was moved, then check the data (`mesh store check`) and start "
            f"the store; restore a backup if that check fails. A new {os.path.basename(path)} at this path is not "
            "the store's: remove it first"
        )

    def _error(self, path: str, what: str, remedy: str) -> Damaged:
        self.fault = f"{path} {what}"
        return Damaged(f"{self.fault}: {_OTHER}{remedy}", details={"path": path})

    @staticmethod
    def _close(fd: int) -> int:
        if fd >= 0:
            os.close(fd)
        return -1


def _stamp(found: os.stat_result) -> Stamp:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _same_file(path: str, stamp: Stamp) -> bool:
    try:
        return _stamp(os.stat(path))[:2] == stamp[:2]
    except OSError:
        return False


def _open_files() -> list[tuple[int, int]]:
    """(device, inode) of every descriptor of this process; [] where the system does not provide them."""
    found = []
    try:
        for fd in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                stat = os.fstat(int(fd))
                found.append((stat.st_dev, stat.st_ino))
    except OSError:
        return []
    return found
