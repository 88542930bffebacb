"""One transaction, and the operations in it.

Owns: its beginning and its end: either durable, or rolled back completely.
Leaves to others: each operation (the modules beside this one).
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final, Protocol

from mesh.engines.contract import Outcome, Unit
from mesh.engines.sqlite import statements
from mesh.engines.sqlite.book import Book
from mesh.engines.sqlite.burial import Burial
from mesh.engines.sqlite.deferring import Deferring
from mesh.engines.sqlite.disk import Damaged, translate
from mesh.engines.sqlite.ending import Ending
from mesh.engines.sqlite.file import CHECKPOINT_PAGES
from mesh.engines.sqlite.guard import Guard
from mesh.engines.sqlite.jobs import Jobs
from mesh.engines.sqlite.leasing import Leasing
from mesh.engines.sqlite.locks import Locks
from mesh.engines.sqlite.log import Log
from mesh.engines.sqlite.schedules import Schedules
from mesh.engines.sqlite.settling import Settling
from mesh.engines.sqlite.state import State
from mesh.engines.sqlite.subscriptions import Subscriptions
from mesh.engines.sqlite.sweep import Sweep
from mesh.engines.sqlite.units import Units
from mesh.errors import UnknownJob
from mesh.locks.contract import Grant
from mesh.schedules.contract import Schedule
from mesh.tasks.contract import JobInfo, Lease, Queue

_FACTS: Final = statements.named("facts")


class _Room(Protocol):
    """A part with pending rows that are written at the end of the transaction."""

    def begin(self) -> None: ...
    def flush(self) -> None: ...


class Rooms:
    """All parts of a transaction, assembled once for an open file."""

    def __init__(self, book: Book, retention_s: float) -> None:
        self.book: Final = book
        self.deferring: Final = Deferring(book)
        self.ending: Final = Ending(book, self.deferring)
        self.leasing: Final = Leasing(book, self.deferring, self.ending, self.flush)
        self.settling: Final = Settling(book, self.ending, self.flush)
        self.burial: Final = Burial(book, self.ending, self.flush)
        self.subscriptions: Final = Subscriptions(book, self.deferring, self.ending)
        self.log: Final = Log(book, self.subscriptions, retention_s)
        self.state: Final = State(book)
        self.schedules: Final = Schedules(book)
        self.locks: Final = Locks(book)
        self.units: Final = Units(book, self.deferring, self.settling, self.log, self.state, self.schedules)
        self.sweep: Final = Sweep(book, self.ending, self.log, self.state, self.locks)
        self.jobs: Final = Jobs(book)
        self._keeping: Final[tuple[_Room, ...]] = (
            self.deferring,
            self.ending,
            self.log,
            self.subscriptions,
            self.state,
            self.units,
        )

    def begin(self) -> None:
        """Begin a transaction: nothing is pending."""
        for room in self._keeping:
            room.begin()

    def flush(self) -> None:
        """Write all pending rows."""
        for room in self._keeping:
            room.flush()


def checkpoint(book: Book, how: str = "PASSIVE") -> None:
    """Run a checkpoint of the log. After a fatal error no transaction can begin any more."""
    guard = book.guard
    try:
        if guard is not None:
            guard.look()
        book.execute(f"PRAGMA wal_checkpoint({how})").fetchall()
    except sqlite3.Error as exc:
        book.failed(translate(exc, book.path))
    except Damaged as exc:
        book.failed(exc)
    else:
        if guard is None:
            return
        try:
            guard.checkpointed()
        except Damaged as exc:
            book.failed(exc)
        return
    if guard is not None:
        # The checkpoint may be partial.
        with contextlib.suppress(Damaged):
            guard.checkpointed()


class Turn:
    """One transaction. Nothing is durable before the `with` block has ended without an error.

    Raises at the end of the block, or in it:
        Unwritable: the disk cannot be written. Damaged: the file is corrupt. Either way nothing was changed.

    Attributes:
        wall: the instant of this transaction.
        woken: queues that have got ready tasks (or suspects) in it.
        over: ids of jobs that are over now: for callers that wait for one.
        stopping: (session, id, attempt) of running attempts that were asked to stop.
        freed: names of locks that have become free.
    """

    __slots__ = ("_ahead", "_book", "_ended", "_rooms", "freed", "over", "stopping", "wall", "woken")

    def __init__(self, rooms: Rooms, wall: float, ended: Callable[[], None], ahead: float = 0.0) -> None:
        """Args:
        ahead: how far the wall clock is ahead of `wall`, which is the store's own time.
        ended: called at the end of the transaction, also after an error.
        """
        self._rooms = rooms
        self._book = rooms.book
        self._ended = ended
        self.wall = wall
        self._ahead = ahead
        self.woken: set[str] = set()
        self.over: list[str] = []
        self.stopping: list[tuple[str, str, int]] = []
        self.freed: set[str] = set()

    def __enter__(self) -> Turn:
        book = self._book
        try:
            if book.guard is not None:
                book.guard.ready()
            book.execute("BEGIN IMMEDIATE")
        except Damaged as exc:
            self._ended()
            book.failed(exc)
            raise
        except sqlite3.Error as exc:
            self._ended()
            raise book.failed(translate(exc, book.path)) or exc from exc
        book.begin(self.wall, self._ahead)
        self._rooms.begin()
        if book.guard is not None:
            try:
                book.guard.begun()
            except BaseException as exc:
                self._rollback()
                self._ended()
                book.failed(exc)
                raise
        self.woken = book.woken
        self.over = book.over
        self.stopping = book.stopping
        self.freed = book.freed
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        failure = exc
        try:
            if failure is None:
                try:
                    self._rooms.flush()
                    self._book.execute("COMMIT")
                    if self._book.guard is not None:
                        self._check(self._book.guard)
                    self._book.turn = None
                except BaseException as at_commit:
                    failure = at_commit
            if failure is not None:
                self._rollback()
        finally:
            self._ended()
        if failure is None:
            return
        if isinstance(failure, sqlite3.Error):
            meant = self._book.failed(translate(failure, self._book.path))
            if meant is not None:
                raise meant from failure
        self._book.failed(failure)
        if exc is None:
            raise failure

    def _check(self, guard: Guard) -> None:
        """Check after the commit. Raises: Damaged: the next start might not find the transaction in the log."""
        try:
            guard.committed()
        except Damaged as damage:
            damage.doubtful = True
            raise
        if guard.frames >= CHECKPOINT_PAGES:
            # The commit is confirmed even if the checkpoint fails; a failure affects only later transactions.
            checkpoint(self._book)

    def _rollback(self) -> None:
        book = self._book
        try:
            # SQLite may have rolled back already.
            if book.cursor.connection.in_transaction:
                book.execute("ROLLBACK")
            if book.guard is not None:
                book.guard.rolled_back()
        except sqlite3.Error:
            book.broken = True
        book.rollback()
        self.woken = set()
        self.over = []
        self.stopping = []
        self.freed = set()

    # --- units, tasks -----------------------------------------------------------------------------------------

    def apply(self, units: Sequence[Unit]) -> list[Outcome]:
        """Apply units in order. A unit with an error in its outcome has changed nothing; a unit that was applied before
        (even in this transaction) gets its first outcome again.
        """
        return self._rooms.units.apply(units)

    def claim(self, queue: str, n: int, session: str, *, solo: bool = False) -> list[Lease]:
        """Lease up to `n` ready tasks to a session, in order. `solo`: only suspects; otherwise no suspects.

        The caller enforces rate, concurrency and credit. Tasks made in this transaction are leased before they are
        written, which is cheaper: claim after `apply`, in the same transaction.
        """
        return self._rooms.leasing.claim(queue, n, session, solo=solo)

    def promote(self, limit: int = 1000) -> int:
        """Make delayed tasks that are due ready; return how many. As many as `limit`: there may be more."""
        return self._rooms.leasing.promote(limit)

    def release(self, session: str, *, keep: Sequence[tuple[str, int]] = (), lost: bool) -> list[tuple[str, int]]:
        """Release all leases of a session except (id, attempt) in `keep`.

        Args:
            lost: the worker died with them: each job's `lost` is increased, and it is dead ("lost") when its queue's
                `most_lost` is reached. False: they never started (lost on the way); the attempts do not count.

        Returns:
            Those of `keep` that are not leases of this session: to be cancelled by the caller.
        """
        return self._rooms.leasing.release(session, keep, lost=lost)

    def bury(self, queue: str, *, error: str, limit: int = 1000) -> int:
        """Make ready tasks of an unknown queue dead ("unknown"); return how many. At `limit` there may be more."""
        return self._rooms.burial.bury(queue, error, limit)

    def declare(self, queue: Queue) -> None:
        """Apply a worker's declaration of a queue; with patterns it is a subscription (a new one begins at `start`).

        Raises:
            BadRequest: its name is invalid, or a pattern is malformed.
        """
        self._rooms.flush()
        self._rooms.subscriptions.declare(queue, self._rooms.log.first())

    def cancel(self, id: str) -> JobInfo:
        """As Tasks.cancel; a running attempt is in `stopping`.

        Raises:
            UnknownJob.
        """
        self._rooms.burial.cancel(id)
        info = self._rooms.jobs.find(id, self.wall, forgotten=id in self.over)
        if info is None:
            raise UnknownJob(f"no job {id} is known: its retention is over")
        return info

    def requeue(self, queue: str, ids: Sequence[str] = (), *, limit: int = 1000) -> int:
        """As Tasks.requeue, in steps when no ids are given. As many as `limit`: there may be more."""
        return self._rooms.burial.requeue(queue, ids, limit)

    def drop(self, queue: str, ids: Sequence[str] = (), *, limit: int = 1000) -> int:
        """As Tasks.drop, in steps when no ids are given. As many as `limit`: there may be more."""
        return self._rooms.burial.drop(queue, ids, limit)

    def abandon(self, queue: str, *, limit: int = 1000) -> int:
        """Delete the declaration of a queue or subscription that no worker has any more: it gets no events and no
        longer prevents their deletion. Jobs that are not running are cancelled, dead ones dropped, in steps. Return how
        many; 0: finished. (A worker that declares it again starts a new subscription.)
        """
        return self._rooms.burial.abandon(queue, limit)

    # --- events -----------------------------------------------------------------------------------------------

    def pump(self, limit: int = 1000) -> int:
        """Make deliveries for subscriptions that are behind; return how many events were read. 0: none is behind."""
        return self._rooms.subscriptions.pump(limit, self._rooms.flush)

    def replay(self, subscription: str, *, offset: int) -> None:
        """Move a subscription back, so that events from this offset on are delivered again (`pump` does that).

        Raises:
            BadRequest: there is no such subscription.
        """
        self._rooms.flush()
        self._rooms.subscriptions.replay(subscription, offset)

    # --- schedules, locks -------------------------------------------------------------------------------------

    def declare_schedules(self, schedules: Sequence[Schedule]) -> list[Schedule]:
        """As Schedules.declare."""
        return self._rooms.schedules.declare(schedules)

    def acquire(self, name: str, owner: str, ttl_s: float) -> Grant:
        """As Locks.acquire, without waiting.

        Raises:
            LockTaken: `details` have "owner" and "until_at".
        """
        return self._rooms.locks.acquire(name, owner, ttl_s)

    def renew_lock(self, name: str, owner: str, ttl_s: float) -> Grant:
        """As Locks.renew.

        Raises:
            LockLost.
        """
        return self._rooms.locks.renew(name, owner, ttl_s)

    def release_lock(self, name: str, owner: str) -> bool:
        """As Locks.release; the name is in `freed`."""
        return self._rooms.locks.release(name, owner)

    def keep_time(self, mark: str, *, goes_on: bool) -> None:
        """Store the mark of the store's own time (mesh.engines.steady).

        Args:
            goes_on: False: the time since the locks were granted is unknown, so the time to live of each restarts.
        """
        self._book.execute(_FACTS["put"], ("clock", mark))
        if not goes_on:
            self._rooms.locks.grant_anew()

    # --- what is over -----------------------------------------------------------------------------------------

    def sweep(self, limit: int = 500) -> int:
        """Delete at most `limit` expired rows: jobs, keys, events, units, locks; then return free pages to the disk.
        Return how many; as many as `limit`: there may be more. To be called regularly, with a small limit.
        """
        self._rooms.flush()
        self._book.keep_done()
        return self._rooms.sweep.sweep(limit)
