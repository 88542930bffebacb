"""Making jobs from deferred tasks and from delivered events.

Owns: validating tasks, detecting known ones, and the rows of a transaction's new jobs until they are written.
Leaves to others: leasing them to workers (leasing), which subscription gets which event (subscriptions).

New rows are written together at the end of a transaction, or before a query needs them: one statement for many rows
costs a third of many statements. A row that is claimed before it is written is written as running at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from mesh.engines.semantics.chains import not_made
from mesh.engines.semantics.validation import check_tasks
from mesh.engines.sqlite import statements
from mesh.engines.sqlite.book import Book, QueueBook
from mesh.engines.sqlite.inserting import Insert
from mesh.engines.sqlite.status import BODY, CANCELLED, DELAYED, DONE, READY, RUNNING, WAITING
from mesh.errors import BadRequest
from mesh.events.log import NewEvent
from mesh.tasks.contract import DEFAULT_PRIORITY, NewTask, Ticket

_SQL: Final = statements.named("tasks")
_KNOWN: Final = _SQL["known"]
_INSERT: Final = _SQL["insert"]
_INSERTED: Final = Insert(_INSERT)
_READIED: Final = Insert(_SQL["insert_ready"])
_LEASED: Final = Insert(_SQL["insert_leased"])

#: A larger body has its own row, so that a change of the job's status does not copy it.
INLINE_BYTES: Final = 1024

_pack: Final = msgspec.msgpack.Encoder().encode

#: Positions in a new row, in the order of the statement `insert`.
_STATUS: Final = 3
_SORT: Final = 4
_ATTEMPT: Final = 6
_TRIES: Final = 7
_OWNER: Final = 8
_LINE: Final = 13
_FEEDS: Final = 15
_EXTRA: Final = 22


class Fresh:
    """A ready job that was made in this transaction, before its row is written.

    Attributes:
        row: the values for the statement `insert`; None for a plain task.
        task: the deferred task; or event and offset: the delivered event.
        session: the session with a lease on it.
    """

    __slots__ = ("event", "offset", "row", "seq", "session", "task")

    def __init__(
        self,
        seq: int,
        row: list[Any] | None,
        task: NewTask | None,
        event: NewEvent | None = None,
        offset: int = 0,
    ) -> None:
        self.seq = seq
        self.row = row
        self.task = task
        self.event = event
        self.offset = offset
        self.session: str | None = None

    @property
    def priority(self) -> int:
        """As deferred."""
        return self.task.priority if self.task is not None else DEFAULT_PRIORITY

    def lease(self, session: str) -> tuple[int, int | None, int]:
        """Lease the job: it will be written as running. Return its (attempt, feeds, extra)."""
        self.session = session
        row = self.row
        if row is None:
            return 1, None, 0
        row[_STATUS] = RUNNING
        row[_SORT] = 0
        row[_ATTEMPT] += 1
        row[_TRIES] = 1
        row[_OWNER] = session
        return row[_ATTEMPT], row[_FEEDS], row[_EXTRA]


class Deferring:
    """New jobs, for one transaction after another.

    Attributes:
        fresh: ready jobs with rows that are not written yet, by queue.
    """

    def __init__(self, book: Book) -> None:
        self._book: Final = book
        self.fresh: dict[QueueBook, list[Fresh]] = {}
        self._rows: list[list[Any]] = []
        self._plain: list[tuple[QueueBook, Fresh]] = []
        self._blobs: list[tuple[int, bytes]] = []
        self._known: set[str] = set()
        self._keys: dict[tuple[int, str], str] = {}

    def begin(self) -> None:
        """Begin a transaction."""
        self.fresh = {}
        self._rows = []
        self._plain = []
        self._blobs = []
        self._known = set()
        self._keys = {}

    def learn(self, ids: Iterable[str]) -> None:
        """Find out which of these tasks were made before; called once for all units of a transaction."""
        # Ids begin with their instant, so new ones mostly sort after all existing ones and need no look-up.
        last_id = self._book.last_id
        doubtful = [id for id in ids if id <= last_id]
        if doubtful:
            found = self._book.execute(_KNOWN, (msgspec.json.encode(doubtful).decode(),))
            self._known.update(id for (id,) in found.fetchall())

    # --- tasks ------------------------------------------------------------------------------------------------

    def look(self, tasks: Sequence[NewTask]) -> None:
        """Raises:
        BadRequest: a task is invalid, or `feeds` and `waits` are inconsistent.
        """
        check_tasks(tasks, self._book.lanes)
        for task in tasks:
            if "-" in task.id:
                self._check_id(task.id)

    def _check_id(self, id: str) -> None:
        """Raises:
        BadRequest: the id is, or may become, that of an event's delivery, which would then not be made.
        """
        event, _, lane = id.rpartition("-")
        if lane.isdecimal() and self._book.execute(_SQL["is_event"], (event,)).fetchone() is not None:
            raise BadRequest(
                f"task {id[:80]!r}: this id belongs to a delivery of event {event[:80]}; make ids with mesh.ids.job_id"
            )

    def put(self, tasks: Sequence[NewTask]) -> list[Ticket]:
        """Make the new jobs; return the tickets of all tasks. A repeated task gets the same ticket again."""
        known = self._known
        book = self._book
        first: dict[str, Ticket] = {}
        for task in tasks:
            if task.id in known:
                first[task.id] = Ticket(task.id)
            elif task.key:
                other = self._first(book.lane(task.queue), task)
                if other is not None:
                    first[task.id] = Ticket(other, False)
        # The seq of waiting tasks: assigned with the first task that feeds them, because its row refers to it.
        seqs: dict[str, int] = {}
        if not first:
            for task in tasks:
                self._make(task, seqs)
            return [Ticket(task.id) for task in tasks]
        unmade = not_made(tasks, first)
        tickets: list[Ticket] = []
        for task in tasks:
            ticket = first.get(task.id)
            if ticket is None:
                if task.id in unmade:
                    ticket = Ticket(task.id, False)
                else:
                    ticket = Ticket(task.id)
                    self._make(task, seqs)
            tickets.append(ticket)
        return tickets

    def _first(self, lane: QueueBook, task: NewTask) -> str | None:
        """The id of the job that has this task's key; None when it is the first."""
        place = (lane.no, task.key)
        found = self._keys.get(place)
        if found is not None:
            return found
        row = self._book.execute(_SQL["by_key"], place).fetchone()
        if row is not None:
            seq, id, status, sort = row
            if status not in (DONE, CANCELLED) or sort > self._book.wall:
                return str(id)
            self._book.execute(_SQL["forget_key"], (seq,))
        self._keys[place] = task.id
        return None

    def _make(self, task: NewTask, seqs: dict[str, int]) -> None:
        book = self._book
        lane = book.lanes.get(task.queue) or book.lane(task.queue)
        self._known.add(task.id)
        if task.id > book.last_id:
            book.last_id = task.id
        if not (
            task.key
            or task.order
            or task.due_at
            or task.delay_s
            or task.meta
            or task.timeout_s
            or task.feeds
            or task.waits
            or len(task.body) > INLINE_BYTES
        ):
            # As `_number`, `_ready` and `_count` do: nearly all tasks are plain, and come by the hundred.
            book.seq += 1
            fresh = Fresh(book.seq, None, task)
            self._plain.append((lane, fresh))
            waiting = self.fresh.get(lane)
            if waiting is None:
                self._ready(lane, fresh)
                book.woken.add(lane.name)
                book.touch(lane)
            else:
                waiting.append(fresh)
            lane.counts[READY] += 1
            return
        seq = seqs.get(task.id) or self._number()
        feeds = None
        if task.feeds:
            feeds = seqs[task.feeds] = seqs.get(task.feeds) or self._number()
        wall = book.wall
        due_at = book.due_at(task.due_at, task.delay_s)
        status: int
        sort: float
        if task.waits:
            status, sort = WAITING, 0
        elif due_at > wall:
            status, sort = DELAYED, due_at
        else:
            status, sort = READY, 9 - task.priority
        body: bytes | None = task.body
        extra = 0
        if len(task.body) > INLINE_BYTES:
            self._blobs.append((2 * seq, task.body))
            body, extra = None, BODY
        row: list[Any] = [
            seq,
            task.id,
            lane.no,
            status,
            sort,
            task.priority,
            0,
            0,
            None,
            wall,
            due_at,
            task.keep_s,
            task.key or None,
            task.order or None,
            task.waits,
            feeds,
            task.place,
            task.gathers,
            task.timeout_s,
            task.trace or None,
            _pack(task.meta) if task.meta else None,
            None,
            extra,
            body,
        ]
        if task.order:
            self._line_up(lane, row)
        else:
            self._rows.append(row)
            if status == READY:
                self._ready(lane, Fresh(seq, row, task))
        self._count(lane, row[_STATUS], due_at)

    # --- deliveries -------------------------------------------------------------------------------------------

    def deliver(self, lane: QueueBook, offset: int, event: NewEvent, attempt: int = 0) -> None:
        """Make the delivery of an event to a subscription.

        Args:
            attempt: the last attempt of an earlier delivery of the same event: attempt numbers are never reused.
        """
        book = self._book
        id = delivery_id(event.id, lane)
        if id > book.last_id:
            book.last_id = id
        row: list[Any] = [
            self._number(),
            id,
            lane.no,
            READY,
            9 - DEFAULT_PRIORITY,
            DEFAULT_PRIORITY,
            attempt,
            0,
            None,
            book.wall,
            0,
            0,
            None,
            event.key or None,
            0,
            None,
            0,
            False,
            0,
            None,
            None,
            offset,
            0,
            None,
        ]
        if event.key:
            self._line_up(lane, row)
        else:
            self._rows.append(row)
            self._ready(lane, Fresh(row[0], row, None, event, offset))
        self._count(lane, row[_STATUS], 0)

    # --- rows -------------------------------------------------------------------------------------------------

    def _number(self) -> int:
        self._book.seq += 1
        return self._book.seq

    def _line_up(self, lane: QueueBook, row: list[Any]) -> None:
        """Let a job with an ordering key wait for earlier ones. Its row is written at once: the next must find it."""
        if self._book.execute(_SQL["line_taken"], (lane.no, row[_LINE])).fetchone() is not None:
            row[_STATUS], row[_SORT] = WAITING, 0
        self._book.execute(_INSERT, row)

    def _ready(self, lane: QueueBook, fresh: Fresh) -> None:
        waiting = self.fresh.get(lane)
        if waiting is None:
            waiting = self.fresh[lane] = []
        waiting.append(fresh)

    def _count(self, lane: QueueBook, status: int, due_at: float) -> None:
        book = self._book
        if lane.turn is not book.turn:
            book.touch(lane)
        lane.counts[status] += 1
        if status == READY:
            book.woken.add(lane.name)
        elif status == DELAYED and due_at < lane.due_at:
            lane.due_at = due_at

    def flush(self) -> None:
        """Write pending rows."""
        self.fresh = {}
        if self._plain:
            self._write_plain()
            self._plain = []
        if self._rows:
            _INSERTED.write(self._book.execute, self._rows)
            self._rows = []
        if self._blobs:
            self._book.executemany(_SQL["insert_blob"], self._blobs)
            self._blobs = []

    def _write_plain(self) -> None:
        """Write the rows of plain tasks: binding fewer values makes this half again as fast."""
        wall = self._book.wall
        ready: list[tuple[Any, ...]] = []
        leased: list[tuple[Any, ...]] = []
        for lane, fresh in self._plain:
            task = fresh.task
            assert task is not None
            row = (
                fresh.seq,
                task.id,
                lane.no,
                task.priority,
                wall,
                task.keep_s,
                task.trace or None,
                task.body,
            )
            if fresh.session is None:
                ready.append(row)
            else:
                leased.append((*row, fresh.session))
        _READIED.write(self._book.execute, ready)
        _LEASED.write(self._book.execute, leased)


def delivery_id(event: str, lane: QueueBook) -> str:
    """The id of the job that delivers an event to a subscription. Deterministic."""
    return f"{event}-{lane.no}"
