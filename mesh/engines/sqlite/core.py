"""One SQLite file with all durable data, and the one thread that owns it.

Owns: opening the file (exclusively), one transaction at a time (`turn`), and reading between them.
Leaves to others: sockets, time, sessions and leasing (mesh.store).

A turn is one transaction: requests of many callers are applied, ready tasks are leased, and one commit makes all of it
durable. Nothing may be answered or pushed before the turn has ended without an error::

    with core.turn(clock.wall()) as turn:
        outcomes = turn.apply(units)
        leases = turn.claim("orders.charge", 16, session)
    # durable from here on: answer `outcomes`, push `leases`; turn.woken, turn.over and turn.stopping tell what changed

When the file cannot be written, a turn raises Unwritable, in its body or at its end, and has changed nothing, neither
in the file nor in memory. The reading methods of Core are to be called between turns. They are quick, however large the
file is; those that could take long work in steps (`read`, `count`).

Instants (`wall`, `…_at`) are seconds since 1970, passed in.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from mesh.engines.sqlite import identity, partials, statements
from mesh.engines.sqlite.backup import Backup, backup, check
from mesh.engines.sqlite.book import Book, matcher
from mesh.engines.sqlite.disk import Damaged, Fatal, translate
from mesh.engines.sqlite.file import FILE, Opened, open_file, pragma, schema
from mesh.engines.sqlite.folder import Folder
from mesh.engines.sqlite.guard import Guard
from mesh.engines.sqlite.status import READY, RUNNING
from mesh.engines.sqlite.turn import Rooms, Turn, checkpoint
from mesh.errors import MeshError, SetupError, Unwritable
from mesh.events.log import LoggedEvent
from mesh.locks.contract import Grant
from mesh.schedules.contract import Schedule
from mesh.state.contract import Entry
from mesh.tasks.contract import JobInfo, Queue, QueueInfo, Status

__all__ = ["Backup", "Core", "FileInfo", "Held", "Turn"]

_FACTS: Final = statements.named("facts")

#: Seconds between attempts to open a read-only file for writing.
_REOPEN_S: Final = 5.0
#: A larger log is truncated when the store is idle; overwriting a smaller one is faster than making a new one.
_LONG_LOG_BYTES: Final = 16 * 2**20


class Held(NamedTuple):
    """A lease as stored in the file.

    Attributes:
        stopping: this attempt was asked to stop; cancel it when the session subscribes again.
        suspect: its task was lost twice or more: it runs alone.
    """

    id: str
    attempt: int
    queue: str
    session: str
    stopping: bool
    suspect: bool


class FileInfo(NamedTuple):
    """The file in numbers.

    Attributes:
        wal_bytes: size of the write-ahead log. free_bytes: unused space in the file, for later rows.
        tasks, events: number of kept rows.
        reason: why the file is not writable.
    """

    path: Path
    schema: int
    size_bytes: int
    wal_bytes: int
    free_bytes: int
    tasks: int
    events: int
    writable: bool
    reason: str


class Core:
    """The owner of one folder with one SQLite file.

    Attributes:
        path: of the file.
        writable: False when the file could only be opened read-only; a turn then tries to open it again (every few
            seconds at most) and raises Unwritable while that fails. `reason`: why.
        id: of the store, the same for all its copies; "" while it is not open.
        fatal: after `close`: the error after which nothing could be confirmed; see mesh.engines.sqlite.guard.
        rescued: after `close`: the log had only lost its name, and all confirmed changes are in the database now.
    """

    def __init__(self, dir: Path, *, cache_bytes: int = 32 * 2**20, retention_s: float = 7 * 86400.0) -> None:
        """Files are not touched before `open`.

        Args:
            cache_bytes: memory for pages.
            retention_s: how long events are kept; PROOF_S (eleven minutes) at least.
        """
        self.path: Final = Path(dir).absolute() / FILE
        self.writable = False
        self.reason = "it is not open"
        self._cache_bytes: Final = cache_bytes
        self._retention_s: Final = retention_s
        self._folder: Final = Folder(self.path.parent)
        self._connection: sqlite3.Connection | None = None
        self._rooms_: Rooms | None = None
        self._busy = False
        self._reopen_at = 0.0
        self.fatal: Fatal | None = None
        self.rescued = False
        self.id = ""

    # --- opening ----------------------------------------------------------------------------------------------

    def open(self, *, replace: bool = False) -> None:
        """Lock the folder (created with mode 0700 if missing), check the file, and migrate its schema.

        Args:
            replace: accept a different store than before, or an empty folder where there was a store.

        Raises:
            WrongStore: it is not the store that was there before; see mesh.engines.sqlite.identity.
            SetupError: another process has the folder (its pid is named), the file is corrupt, or it is of a newer
                version. The message describes the remedy; the file is unchanged.
        """
        self._folder.take()
        dir = self.path.parent
        try:
            if not replace:
                identity.expect(dir)
            for each in {dir, *partials.directories(dir)}:
                partials.clean(each)
            self._load(open_file(self.path, self._cache_bytes), replace=replace)
        except BaseException:
            self._disconnect()
            self._folder.leave()
            raise

    def _load(self, opened: Opened, *, replace: bool = False) -> None:
        self._connection = opened.connection
        try:
            self.id = identity.settle(opened.connection, self.path.parent, writable=opened.writable, replace=replace)
        except sqlite3.Error as exc:
            raise translate(exc, self.path) or exc from exc
        book = Book(self.path, opened.connection.cursor())
        rooms = Rooms(book, self._retention_s)
        try:
            book.load()
            rooms.state.load()
        except sqlite3.Error as exc:
            raise translate(exc, self.path) or exc from exc
        if opened.writable:
            book.guard = Guard(self.path, opened.connection)
        self._rooms_ = rooms
        self.writable, self.reason = opened.writable, opened.reason
        self._reopen_at = time.monotonic() + _REOPEN_S

    def close(self) -> None:
        """Close the file and unlock the folder. Idempotent.

        When `fatal` is set afterwards, another program has changed the files since the last commit.
        """
        if self._rooms_ is not None and self.writable and not self._busy:
            # So that the next start need not read again the events that no subscription matched.
            with contextlib.suppress(MeshError, sqlite3.Error), self.turn(0.0):
                self._rooms_.subscriptions.note()
                self._rooms_.book.keep_done()
        self._disconnect()
        self._folder.leave()

    def _disconnect(self) -> None:
        self.writable, self.reason = False, "it is not open"
        rooms, self._rooms_ = self._rooms_, None
        connection, self._connection = self._connection, None
        if connection is None:
            return
        guard = rooms.book.guard if rooms is not None else None
        if rooms is None or guard is None:
            connection.close()
            return
        if rooms.book.fatal is None:
            try:
                guard.look()
            except Damaged as exc:
                rooms.book.failed(exc)
        self.fatal = rooms.book.fatal
        if guard.fault:
            self.rescued = guard.rescue(connection)
            guard.keep(connection)
        else:
            connection.close()
        guard.close()

    @property
    def _rooms(self) -> Rooms:
        if self._rooms_ is None:
            raise SetupError(f"{self.path} is not open")
        return self._rooms_

    # --- turns ------------------------------------------------------------------------------------------------

    def turn(self, wall: float, ahead: float = 0.0) -> Turn:
        """A transaction, as a context manager; one at a time.

        Args:
            ahead: how far the wall clock is ahead of `wall`, the store's own time (mesh.engines.steady).

        Raises:
            Unwritable: the file is read-only.
        """
        if self._busy:
            raise RuntimeError("a transaction is open: transactions do not nest")
        if self._rooms.book.fatal is not None:
            raise self._rooms.book.fatal
        if not self.writable or self._rooms.book.broken:
            self._reopen()
        turn = Turn(self._rooms, wall, self._ended, ahead)
        self._busy = True
        return turn

    def _ended(self) -> None:
        self._busy = False

    def _reopen(self) -> None:
        """Raises: Unwritable: it still cannot be written."""
        rooms = self._rooms
        if time.monotonic() >= self._reopen_at or rooms.book.broken:
            self._reopen_at = time.monotonic() + _REOPEN_S
            self._disconnect()
            if self.fatal is not None:
                raise self.fatal
            try:
                self._load(open_file(self.path, self._cache_bytes))
            except Fatal:
                raise
            except MeshError as exc:
                # The in-memory state stays, so that the next attempt is made.
                self._rooms_ = rooms
                rooms.book.broken = False
                self.writable, self.reason = False, exc.message
        if not self.writable:
            raise Unwritable(f"{self.path} is read-only: {self.reason}", details={"path": str(self.path)})

    def rest(self) -> None:
        """Idle work: checkpoint the write-ahead log into the database. Takes a few milliseconds."""
        if self._busy or not self.writable:
            return
        checkpoint(self._rooms.book, "TRUNCATE" if self._log_bytes() > _LONG_LOG_BYTES else "PASSIVE")

    @contextlib.contextmanager
    def _reading(self) -> Iterator[Rooms]:
        """Read between turns. Raises: Damaged; Unwritable: the disk cannot be read."""
        rooms = self._rooms
        if self._connection is None:
            raise Unwritable(f"{self.path} cannot be opened again: {self.reason}", details={"path": str(self.path)})
        try:
            yield rooms
        except sqlite3.Error as exc:
            raise translate(exc, self.path) or exc from exc

    def time_mark(self) -> str:
        """The mark that the last process stored by `Turn.keep_time`; "" for none."""
        with self._reading() as rooms:
            row = rooms.book.execute(_FACTS["find"], ("clock",)).fetchone()
            return str(row[0]) if row is not None else ""

    # --- tasks ------------------------------------------------------------------------------------------------

    def next_due(self) -> float | None:
        """When the next delayed task is due, or earlier: when to call `Turn.promote`."""
        return self._rooms.leasing.next_due()

    def ready(self, queue: str) -> int:
        """How many tasks `Turn.claim(…, solo=False)` could lease; suspects are not counted. O(1)."""
        lane = self._rooms.book.lanes.get(queue)
        return lane.counts[READY] - lane.suspects if lane is not None else 0

    def suspects(self, queue: str) -> int:
        """How many tasks `Turn.claim(…, solo=True)` could lease. O(1)."""
        lane = self._rooms.book.lanes.get(queue)
        return lane.suspects if lane is not None else 0

    def running(self, queue: str) -> int:
        """How many leases of this queue are held over all sessions (for `concurrency`). O(1)."""
        lane = self._rooms.book.lanes.get(queue)
        return lane.counts[RUNNING] if lane is not None else 0

    def names(self) -> list[str]:
        """The names of all known queues."""
        return list(self._rooms.book.lanes)

    def declared(self, queue: str) -> Queue | None:
        """The latest declaration of a queue, also from before a restart; None when no worker ever declared it."""
        lane = self._rooms.book.lanes.get(queue)
        return lane.said if lane is not None else None

    def held(self) -> dict[str, list[Held]]:
        """session → its leases, as stored in the file."""
        return {
            session: [
                Held(job.id, job.attempt, job.lane.name, session, bool(job.asked), job.suspect)
                for job in of_session.values()
            ]
            for session, of_session in self._rooms.book.sessions.items()
        }

    def job(self, id: str, wall: float, *, forgotten: bool = False) -> JobInfo | None:
        """The present state of a job.

        Args:
            forgotten: also find a job with an expired retention: for callers that waited for a job that is not kept.
        """
        with self._reading() as rooms:
            return rooms.jobs.find(id, wall, forgotten=forgotten)

    def queue_of(self, id: str) -> str:
        """The queue of a job, even of one that is kept only as a proof; "" when it has no row."""
        with self._reading() as rooms:
            return rooms.jobs.queue_of(id)

    def jobs(self, queue: str, status: Status, *, after: str = "", limit: int = 100, wall: float) -> list[JobInfo]:
        """As Jobs.page."""
        with self._reading() as rooms:
            return rooms.jobs.page(queue, status, after, limit, wall)

    def queues(self, wall: float) -> list[QueueInfo]:
        """As Leases.queues, with `workers` 0: only the caller knows sessions. Includes queues without jobs if they were
        ever declared.
        """
        with self._reading() as rooms:
            return rooms.jobs.queues(wall, rooms.log.first())

    # --- events -----------------------------------------------------------------------------------------------

    def pumpable(self) -> bool:
        """Whether `Turn.pump` has work: a subscription is behind the log and has few ready deliveries."""
        return self._rooms.subscriptions.pumpable()

    def read(
        self, pattern: str, *, after: int = 0, limit: int = 100, scan: int = 5000
    ) -> tuple[list[LoggedEvent], int | None]:
        """Read one step of a page of the log: at most `limit` matching events, of the next `scan` events.

        Returns:
            The events, and `after` of the next step; None at the end of the log. A page is complete when it is full or
            this is None.

        Raises:
            BadRequest: the pattern is malformed.
        """
        topics = matcher((pattern,))
        with self._reading() as rooms:
            return rooms.log.read(topics, after, limit, scan)

    def count(self, subscription: str, *, after: int = 0, scan: int = 20_000) -> tuple[int, int | None]:
        """Count, in steps as `read`, the kept events after an offset that a subscription matches.

        Raises:
            BadRequest: there is no such subscription.
        """
        with self._reading() as rooms:
            topics = rooms.subscriptions.find(subscription).topics
            assert topics is not None
            return rooms.log.count(topics, after, scan)

    @property
    def last_offset(self) -> int:
        """The offset of the newest event."""
        return self._rooms.book.offset

    def offset_at(self, since_at: float) -> int:
        """The offset of the first event that was appended at or after this instant (the next offset when none was)."""
        with self._reading() as rooms:
            return rooms.log.offset_at(since_at)

    # --- state, schedules, locks --------------------------------------------------------------------------------

    def get(self, namespace: str, keys: Sequence[str], wall: float) -> list[Entry | None]:
        """As StateStore.get."""
        with self._reading() as rooms:
            return rooms.state.get(namespace, keys, wall)

    def page(self, namespace: str, *, prefix: str = "", after: str = "", limit: int = 100, wall: float) -> list[Entry]:
        """As StateStore.page."""
        with self._reading() as rooms:
            return rooms.state.page(namespace, prefix, after, limit, wall)

    def namespaces(self, wall: float) -> list[tuple[str, int]]:
        """As StateStore.namespaces."""
        with self._reading() as rooms:
            return rooms.state.namespaces(wall)

    def schedules(self) -> list[Schedule]:
        """As Schedules.schedules."""
        with self._reading() as rooms:
            return rooms.schedules.all()

    def lock(self, name: str, wall: float) -> Grant | None:
        """The present grant of a lock, or None."""
        with self._reading() as rooms:
            return rooms.locks.holder(name, wall)

    def locks(self, wall: float) -> list[Grant]:
        """As Locks.locks."""
        with self._reading() as rooms:
            return rooms.locks.all(wall)

    # --- the file -------------------------------------------------------------------------------------------------

    def backup(self, path: Path, *, overwrite: bool = False) -> Backup:
        """Copy a snapshot of the file while the store keeps running; the copy is checked before it gets its name. To be
        called in a thread of its own.

        Raises:
            SetupError: the path exists, cannot be written, or the copy is not sound.
        """
        return backup(self.path, path, overwrite=overwrite)

    def check(self) -> list[str]:
        """Read and check the whole file; return a description of each problem. To be called in a thread of its own."""
        return check(self.path)

    def info(self) -> FileInfo:
        """The file in numbers. Quick."""
        with self._reading() as rooms:
            connection = rooms.book.cursor.connection
            return FileInfo(
                path=self.path,
                schema=schema(connection),
                size_bytes=pragma(connection, "page_count") * pragma(connection, "page_size"),
                wal_bytes=self._log_bytes(),
                free_bytes=pragma(connection, "freelist_count") * pragma(connection, "page_size"),
                tasks=sum(sum(lane.counts) for lane in rooms.book.lanes.values()),
                events=rooms.book.offset + 1 - rooms.log.first(),
                writable=self.writable,
                reason=self.reason,
            )

    def _log_bytes(self) -> int:
        try:
            return self.path.with_name(FILE + "-wal").stat().st_size
        except OSError:
            return 0
