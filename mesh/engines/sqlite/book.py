"""What the core keeps in memory of an open file, and how it gets back when a transaction fails.

Owns: queues with their counts, the leases that are held, numbers that only grow, and a turn's pending rows.
Leaves to others: changing any of it for a reason (all the rooms beside this one), the transaction (turn).

Counting a million rows takes a tenth of a second, so counts are kept here and read from the file only when it is
opened. Every change in here belongs to a transaction: `rollback` puts back what the file is put back to.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

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


class Lane:
    """One queue.

    Attributes:
        counts: jobs by status.
        suspects: how many of the ready ones must run alone.
        done: jobs that were ever done; kept: the same, as the file knows it.
        due_at: not later than the first delayed one's time.
        ends_at: not later than the first instant at which a row may go.
        said: what a worker declared last, if ever one did.
        topics: what it subscribes to; None for a queue of tasks.
        position: the last offset of which deliveries were made, as the file has it; None if it never subscribed.
        replays: how often it was moved back.
        level: it has everything that stands in the log; new events are delivered at once.
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
        """Everything that a turn may change."""
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
        """As it was when it was saved."""
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
        """A task whose worker died this often is dead."""
        return self.said.most_lost if self.said is not None else Queue("", 0).most_lost


class Job:
    """A job that is being dealt with; one of these is kept for each lease that is held.

    Attributes:
        session: that has the lease.
        feeds: seq of the task that waits for it.
        asked: somebody asked it to stop.
        event: offset of what it delivers, or None.
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
        lane: Lane,
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
        """It may be what kills its workers: it runs alone."""
        return self.lost >= SUSPECT_LOST


class Book:
    """Everything that is known of an open file, and the turn that is under way.

    Attributes:
        cursor: of the one connection.
        lanes, by_no: every queue. subscriptions: those with topics, matched at once. behind: those that are not level.
        held: id → the lease that is held on it; sessions: the same by session.
        seq, offset: the last that were given out.
        last_id: no job has an id that sorts after it. (The greatest there ever was: a job that goes leaves it.)
        wall: the instant of this turn, in the store's own time; turn: its identity.
        ahead: how far the wall clock is ahead of that time.
        woken, over, stopping, freed: see Turn.
        broken: not even rolling back went well; the file must be opened again.
        guard: watches the files; None when they can only be read.
        fatal: why no turn may begin any more.
    """

    def __init__(self, path: Path, cursor: sqlite3.Cursor) -> None:
        self.path: Final = path
        self.cursor: Final = cursor
        self.execute: Final = cursor.execute
        self.executemany: Final = cursor.executemany
        self.lanes: dict[str, Lane] = {}
        self.by_no: dict[int, Lane] = {}
        self.subscriptions: Matcher[Lane] = Matcher(())
        self.behind: set[Lane] = set()
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
        self._saved: list[tuple[Lane, tuple[Any, ...]]] = []
        self._undo: list[tuple[Callable[..., object], tuple[Any, ...]]] = []
        self._numbers = (0, 0)

    # --- reading the file ---------------------------------------------------------------------------------

    def load(self) -> None:
        """Read what is kept in memory; walks an index, no rows of jobs that are not running."""
        execute = self.execute
        marks = dict(execute(_SQL["marks"]).fetchall())
        self.seq = max(marks["seq"], execute(_SQL["last_seq"]).fetchone()[0] or 0)
        self.last_id = execute(_SQL["last_id"]).fetchone()[0] or ""
        self.offset = max(marks["offset"], execute(_SQL["last_offset"]).fetchone()[0] or 0)
        for no, name, said, position, replays, done in execute(_SQL["queues"]).fetchall():
            lane = self.by_no[no] = self.lanes[name] = Lane(no, name)
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
        """Match events against the subscriptions as they are now."""
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
        """The file is as it was when the turn began; so be this."""
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
        """Remember an error after which nothing may be confirmed any more; any other is passed through."""
        if isinstance(error, Fatal) and self.fatal is None:
            self.fatal = error
        return error

    def due_at(self, due_at: float, delay_s: float) -> float:
        """When something is due in the store's own time; 0 for at once.

        Args:
            due_at: an instant of the wall clock, or 0. delay_s: a time from now on, which counts when it is above 0.
        """
        if delay_s:
            return self.wall + delay_s
        return due_at - self.ahead if due_at else 0.0

    def undo(self, act: Callable[..., object], *args: Any) -> None:
        """What to call should this turn fail."""
        self._undo.append((act, args))

    def touch(self, lane: Lane) -> None:
        """Before a queue is changed in a turn."""
        if lane.turn is not self.turn:
            lane.turn = self.turn
            self._saved.append((lane, lane.save()))

    # --- queues ---------------------------------------------------------------------------------------------

    def lane(self, name: str) -> Lane:
        """The queue, made when it is new."""
        found = self.lanes.get(name)
        if found is None:
            no = self.execute(_SQL["add_queue"], (name,)).lastrowid
            assert no is not None
            found = self.lanes[name] = self.by_no[no] = Lane(no, name)
            self.undo(self.lanes.pop, name, None)
            self.undo(self.by_no.pop, no, None)
        return found

    def declare(self, said: Queue) -> Lane:
        """Keep what a worker says of a queue."""
        lane = self.lane(said.name)
        if lane.said != said:
            self.touch(lane)
            lane.said = said
            self.execute(_SQL["declare"], (_pack(said), lane.no))
        return lane

    def moved(self, lane: Lane, before: int, after: int) -> None:
        """One job of a queue has another status. Raises: KeyError: no such move is legal."""
        MOVES[before, after]
        if lane.turn is not self.turn:
            self.touch(lane)
        lane.counts[before] -= 1
        lane.counts[after] += 1
        if after == READY:
            self.woken.add(lane.name)

    def keep_done(self) -> None:
        """Write how many jobs of each queue were ever done. Now and then: with every job it would cost a page more."""
        for lane in self.lanes.values():
            if lane.done != lane.kept:
                self.execute(_SQL["keep_done"], (lane.done, lane.no))
                self.undo(setattr, lane, "kept", lane.kept)
                lane.kept = lane.done

    # --- leases ---------------------------------------------------------------------------------------------

    def hold(self, job: Job) -> None:
        """A session has a lease."""
        self.held[job.id] = job
        of_session = self.sessions.get(job.session)
        if of_session is None:
            of_session = self.sessions[job.session] = {}
        of_session[job.id] = job
        self._undo.append((self._let_go, (job,)))

    def let_go(self, job: Job) -> None:
        """A lease is over."""
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
    """What a subscription matches. Raises: BadRequest: a pattern is malformed."""
    try:
        return Matcher([(pattern, None) for pattern in patterns])
    except BadTopic as exc:
        # Of the errors that callers know by name.
        raise BadRequest(exc.message) from exc
