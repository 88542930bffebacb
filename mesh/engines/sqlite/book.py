"""The core's in-memory state of an open file, and its rollback when a transaction fails.

Owns: queues with their counts, held leases, sequence numbers, and the changes of the running transaction.
Leaves to others: making the changes (the modules beside this one), the transaction (turn).

Counting a million rows takes a tenth of a second, so counts are kept here and read from the file only when it is
opened. Every change here belongs to a transaction: `rollback` undoes it together with the changes of the file.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from mesh.engines.semantics import acknowledgements
from mesh.engines.sqlite import statements
from mesh.engines.sqlite.disk import Fatal
from mesh.engines.sqlite.guard import Guard
from mesh.engines.sqlite.status import MOVES, READY, RUNNING, STATUSES, SUSPECT_LOST, SUSPECT_SORT
from mesh.errors import BadRequest
from mesh.events.topics import BadTopic, Matcher
from mesh.tasks.contract import Queue

_SQL: Final = statements.named("book")
_NEVER: Final = math.inf

E = TypeVar("E")

_said: Final = msgspec.msgpack.Decoder(Queue)
_pack: Final = msgspec.msgpack.Encoder().encode


class QueueBook:
    """One queue.

    Attributes:
        counts: number of jobs by status.
        suspects: how many of the ready jobs must run alone.
        done: how many jobs were ever done; kept: the same number as stored in the file.
        due_at: a lower bound of the first due time of delayed jobs.
        ends_at: a lower bound of the first instant at which a row may be deleted.
        said: the latest declaration by a worker, if any.
        topics: the topics that it subscribes to; None for a queue of tasks.
        position: the last offset with deliveries made, as stored in the file; None if it was never a subscription.
        replays: how often it was moved back by a replay.
        level: it has received the whole log; new events are delivered at once.
    """

    __slots__ = (
        "counts",
        "done",
        "due_at",
        "ends_at",
        "kept",
        "level",
        "name",
        "no",
        "position",
        "replays",
        "said",
        "suspects",
        "topics",
        "turn",
    )

    def __init__(self, no: int, name: str) -> None:
        self.no: Final = no
        self.name: Final = name
        self.counts = [0] * STATUSES
        self.suspects = 0
        self.done = 0
        self.kept = 0
        self.due_at = _NEVER
        self.ends_at = _NEVER
        self.said: Queue | None = None
        self.topics: Matcher[None] | None = None
        self.position: int | None = None
        self.replays = 0
        self.level = False
        self.turn: object = None

    def save(self) -> tuple[Any, ...]:
        """Everything that a transaction may change."""
        return (
            self.counts.copy(),
            self.suspects,
            self.done,
            self.due_at,
            self.ends_at,
            self.said,
            self.topics,
            self.position,
            self.replays,
            self.level,
        )

    def restore(self, saved: tuple[Any, ...]) -> None:
        """Restore what `save` returned."""
        (
            self.counts,
            self.suspects,
            self.done,
            self.due_at,
            self.ends_at,
            self.said,
            self.topics,
            self.position,
            self.replays,
            self.level,
        ) = saved

    @property
    def most_lost(self) -> int:
        """A task is dead after so many workers have died while they ran it."""
        return self.said.most_lost if self.said is not None else Queue("", 0).most_lost


class Job:
    """A job that is being processed; one object is kept for each held lease.

    Attributes:
        session: the session that has the lease.
        feeds: seq of the task that waits for it.
        asked: it was asked to stop.
        event: offset of the delivered event, or None.
    """

    __slots__ = (
        "asked",
        "attempt",
        "event",
        "extra",
        "feeds",
        "id",
        "keep_s",
        "lane",
        "line",
        "lost",
        "place",
        "priority",
        "seq",
        "session",
        "status",
        "tries",
    )

    def __init__(
        self,
        lane: QueueBook,
        seq: int,
        id: str,
        status: int,
        attempt: int,
        tries: int,
        lost: int,
        session: str | None,
        priority: int,
        line: str | None,
        feeds: int | None,
        place: int,
        keep_s: float,
        extra: int,
        asked: int,
        event: int | None,
    ) -> None:
        self.lane = lane
        self.seq = seq
        self.id = id
        self.status = status
        self.attempt = attempt
        self.tries = tries
        self.lost = lost
        self.session = session or ""
        self.priority = priority
        self.line = line
        self.feeds = feeds
        self.place = place
        self.keep_s = keep_s
        self.extra = extra
        self.asked = asked
        self.event = event

    @property
    def suspect(self) -> bool:
        """Whether it may be the task that kills its workers: it then runs alone."""
        return self.lost >= SUSPECT_LOST


class Book:
    """The in-memory state of an open file and of the running transaction.

    Attributes:
        cursor: the cursor of the only connection.
        lanes, by_no: every queue. subscriptions: a matcher of those with topics. behind: those that are not level.
        held: id → the job with a held lease; sessions: the same by session.
        seq, offset: the last assigned numbers.
        last_id: the greatest id that any job ever had, deleted jobs included.
        wall: the instant of this transaction, in the store's own time; turn: identifies the transaction.
        ahead: how far the wall clock is ahead of that time.
        woken, over, stopping, freed: see Turn.
        broken: a rollback failed; the file must be opened again.
        guard: watches the files; None when they are read-only.
        fatal: the error after which no transaction may begin.
    """

    def __init__(self, path: Path, cursor: sqlite3.Cursor) -> None:
        self.path: Final = path
        self.cursor: Final = cursor
        self.execute: Final = cursor.execute
        self.executemany: Final = cursor.executemany
        self.lanes: dict[str, QueueBook] = {}
        self.by_no: dict[int, QueueBook] = {}
        self.subscriptions: Matcher[QueueBook] = Matcher(())
        self.behind: set[QueueBook] = set()
        self.held: dict[str, Job] = {}
        self.sessions: dict[str, dict[str, Job]] = {}
        self.seq = 0
        self.offset = 0
        self.last_id = ""
        self.wall = 0.0
        self.ahead = 0.0
        self.turn: object = None
        self.woken: set[str] = set()
        self.over: list[str] = []
        self.stopping: list[tuple[str, str, int]] = []
        self.freed: set[str] = set()
        self.broken = False
        self.guard: Guard | None = None
        self.fatal: Fatal | None = None
        self._saved: list[tuple[QueueBook, tuple[Any, ...]]] = []
        self._undo: list[tuple[Callable[..., object], tuple[Any, ...]]] = []
        self._numbers = (0, 0)

    # --- reading the file ---------------------------------------------------------------------------------

    def load(self) -> None:
        """Read the in-memory state; scans an index, and reads only the rows of running jobs."""
        execute = self.execute
        marks = dict(execute(_SQL["marks"]).fetchall())
        self.seq = max(marks["seq"], execute(_SQL["last_seq"]).fetchone()[0] or 0)
        self.last_id = execute(_SQL["last_id"]).fetchone()[0] or ""
        self.offset = max(marks["offset"], execute(_SQL["last_offset"]).fetchone()[0] or 0)
        for no, name, said, position, replays, done in execute(_SQL["queues"]).fetchall():
            lane = self.by_no[no] = self.lanes[name] = QueueBook(no, name)
            lane.said = _said.decode(said) if said is not None else None
            lane.done = lane.kept = done
            lane.position = position
            lane.replays = replays
            if lane.said is not None and lane.said.patterns:
                lane.topics = matcher(lane.said.patterns)
                lane.level = position is not None and position >= self.offset
        for no, status, count, first in execute(_SQL["count"]).fetchall():
            lane = self.by_no[no]
            lane.counts[status] = count
            if status == 1:
                lane.due_at = first
            elif status > RUNNING and first > 0:
                lane.ends_at = min(lane.ends_at, first)
        for no, count in execute(_SQL["suspects"], (SUSPECT_SORT,)).fetchall():
            self.by_no[no].suspects = count
        for no, *columns in execute(_SQL["running"]).fetchall():
            job = Job(self.by_no[no], *columns)
            self.held[job.id] = job
            self.sessions.setdefault(job.session, {})[job.id] = job
        self.resubscribe()

    def resubscribe(self) -> None:
        """Rebuild the matcher of the present subscriptions."""
        lanes = [lane for lane in self.lanes.values() if lane.topics is not None]
        pairs = [(pattern, lane) for lane in lanes if lane.said is not None for pattern in lane.said.patterns]
        self.subscriptions = Matcher(pairs, distinct=True)
        self.behind = {lane for lane in lanes if not lane.level}

    # --- a turn ---------------------------------------------------------------------------------------------

    def begin(self, wall: float, ahead: float = 0.0) -> None:
        """A transaction begins."""
        self.wall = wall
        self.ahead = ahead
        self.turn = object()
        self.woken = set()
        self.over = []
        self.stopping = []
        self.freed = set()
        self._saved.clear()
        self._undo.clear()
        self._numbers = (self.seq, self.offset)

    def rollback(self) -> None:
        """Restore the state before the transaction, after the file was rolled back."""
        for act, args in reversed(self._undo):
            act(*args)
        for lane, saved in reversed(self._saved):
            lane.restore(saved)
        self.seq, self.offset = self._numbers
        self.woken = set()
        self.over = []
        self.stopping = []
        self.freed = set()
        self.turn = None
        if self._saved or self._undo:
            self.resubscribe()

    def failed(self, error: E) -> E:
        """Remember the error if it is fatal; return it."""
        if isinstance(error, Fatal) and self.fatal is None:
            self.fatal = error
        return error

    def due_at(self, due_at: float, delay_s: float) -> float:
        """The due time in the store's own time; 0 for at once.

        Args:
            due_at: an instant of the wall clock, or 0. delay_s: a delay from now on; replaces `due_at` when above 0.
        """
        return acknowledgements.due_at(due_at, delay_s, self.wall, self.ahead)

    def undo(self, act: Callable[..., object], *args: Any) -> None:
        """Register a call for the rollback of this transaction."""
        self._undo.append((act, args))

    def touch(self, lane: QueueBook) -> None:
        """Save a queue for a rollback; call this before changing it."""
        if lane.turn is not self.turn:
            lane.turn = self.turn
            self._saved.append((lane, lane.save()))

    # --- queues ---------------------------------------------------------------------------------------------

    def lane(self, name: str) -> QueueBook:
        """The queue, made at first use."""
        found = self.lanes.get(name)
        if found is None:
            no = self.execute(_SQL["add_queue"], (name,)).lastrowid
            assert no is not None
            found = self.lanes[name] = self.by_no[no] = QueueBook(no, name)
            self.undo(self.lanes.pop, name, None)
            self.undo(self.by_no.pop, no, None)
        return found

    def declare(self, said: Queue) -> QueueBook:
        """Store a worker's declaration of a queue."""
        lane = self.lane(said.name)
        if lane.said != said:
            self.touch(lane)
            lane.said = said
            self.execute(_SQL["declare"], (_pack(said), lane.no))
        return lane

    def moved(self, lane: QueueBook, before: int, after: int) -> None:
        """Count the change of a job's status. Raises: KeyError: the transition is illegal."""
        MOVES[before, after]
        if lane.turn is not self.turn:
            self.touch(lane)
        lane.counts[before] -= 1
        lane.counts[after] += 1
        if after == READY:
            self.woken.add(lane.name)

    def keep_done(self) -> None:
        """Write how many jobs of each queue were ever done. Only now and then: it costs one more page per commit."""
        for lane in self.lanes.values():
            if lane.done != lane.kept:
                self.execute(_SQL["keep_done"], (lane.done, lane.no))
                self.undo(setattr, lane, "kept", lane.kept)
                lane.kept = lane.done

    # --- leases ---------------------------------------------------------------------------------------------

    def hold(self, job: Job) -> None:
        """Record a lease."""
        self.held[job.id] = job
        of_session = self.sessions.get(job.session)
        if of_session is None:
            of_session = self.sessions[job.session] = {}
        of_session[job.id] = job
        self._undo.append((self._let_go, (job,)))

    def let_go(self, job: Job) -> None:
        """Remove a lease."""
        self._let_go(job)
        self._undo.append((self._hold, (job, job.session)))

    def _let_go(self, job: Job) -> None:
        del self.held[job.id]
        of_session = self.sessions[job.session]
        del of_session[job.id]
        if not of_session:
            del self.sessions[job.session]

    def _hold(self, job: Job, session: str) -> None:
        self.held[job.id] = job
        self.sessions.setdefault(session, {})[job.id] = job


def matcher(patterns: tuple[str, ...]) -> Matcher[None]:
    """A matcher of a subscription's patterns. Raises: BadRequest: a pattern is malformed."""
    try:
        return Matcher([(pattern, None) for pattern in patterns])
    except BadTopic as exc:
        # BadRequest is one of the contract's errors, BadTopic is not.
        raise BadRequest(exc.message) from exc
