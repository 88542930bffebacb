"""The changes to a job, and to jobs that wait for it, when an attempt or the job itself is over.

Owns: done, retry, dead, cancelled; passing answers and failures on to waiting tasks; starting the next job of an
ordering key.
Leaves to others: deciding the end (settling, leasing, burial).
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from mesh.engines.semantics.acknowledgements import given_up
from mesh.engines.sqlite import statements
from mesh.engines.sqlite.book import Book, Job
from mesh.engines.sqlite.deferring import INLINE_BYTES, Deferring
from mesh.engines.sqlite.status import (
    BODY,
    CANCELLED,
    DEAD,
    DELAYED,
    DONE,
    FAILURE,
    FORGOTTEN,
    PRIORS,
    PROOF_S,
    READY,
    RESULT,
    RUNNING,
    SUSPECT_LOST,
    WAITING,
    rank,
)
from mesh.tasks.contract import Reason

_SQL: Final = statements.named("tasks")
#: For one job, and for many that end alike.
_DONE: Final = (_SQL["done"], _SQL["done_alike"])
_DONE_UNKEPT: Final = (_SQL["done_unkept"], _SQL["done_unkept_alike"])

#: From so many jobs on that end alike (in one transaction, with equal answers) one statement ends them all. It takes
#: 1.4 microseconds for each job instead of 2.2; most tasks answer with nothing.
ALIKE: Final = 4

#: Maximum number of stored characters, so that failures do not fill the disk.
MOST_ERROR: Final = 4000
MOST_TRACEBACK: Final = 64_000


class Ending:
    """These changes, for one transaction after another.

    Acknowledgements of plain tasks are written together; `flush` writes the pending ones.
    """

    def __init__(self, book: Book, deferring: Deferring) -> None:
        self._book: Final = book
        self._deferring: Final = deferring
        # The new values of the columns -> the seq of each job that gets them.
        self._done: dict[tuple[Any, ...], list[int]] = {}
        self._unkept: dict[tuple[Any, ...], list[int]] = {}

    def begin(self) -> None:
        """Begin a transaction."""
        self._done = {}
        self._unkept = {}

    def flush(self) -> None:
        """Write pending rows."""
        if self._done:
            self._write(_DONE, self._done)
            self._done = {}
        if self._unkept:
            self._write(_DONE_UNKEPT, self._unkept)
            self._unkept = {}

    def _write(self, statements: tuple[str, str], ended: dict[tuple[Any, ...], list[int]]) -> None:
        one, many = statements
        rows: list[tuple[Any, ...]] = []
        for values, seqs in ended.items():
            if len(seqs) >= ALIKE:
                self._book.execute(many, (*values, msgspec.json.encode(seqs).decode()))
            else:
                rows += [(*values, seq) for seq in seqs]
        if rows:
            self._book.executemany(one, rows)

    # --- an attempt is over -----------------------------------------------------------------------------------

    def done(self, job: Job, result: bytes) -> None:
        """End a held job as done."""
        book = self._book
        book.let_go(job)
        lane = job.lane
        extra = job.extra
        kept: bytes | None = result
        if extra:
            self.tidy(job.seq, extra & ~BODY)
            extra &= BODY
        if len(result) > INLINE_BYTES:
            book.execute(_SQL["insert_blob"], (2 * job.seq + 1, result))
            kept, extra = None, extra | RESULT
        if job.keep_s > 0:
            ends_at = book.wall + job.keep_s
            book.moved(lane, RUNNING, DONE)
            self._done.setdefault((DONE, ends_at, extra, kept), []).append(job.seq)
        else:
            ends_at = book.wall + PROOF_S
            book.moved(lane, RUNNING, FORGOTTEN)
            self._unkept.setdefault((ends_at, extra, kept), []).append(job.seq)
        if ends_at < lane.ends_at:
            lane.ends_at = ends_at
        lane.done += 1
        book.over.append(job.id)
        if job.feeds is not None:
            self._feed(job, result)
        if job.line is not None:
            self.flush()
            self.advance(job)

    def again(self, job: Job, due_at: float, *, tries: int, lost: int | None = None, verdict: int = 0) -> None:
        """Run a held job again, from an instant on; or cancel it, if that was requested."""
        book = self._book
        if job.asked:
            self.end(job, CANCELLED, verdict=verdict)
            return
        book.let_go(job)
        lane = job.lane
        lost = job.lost if lost is None else lost
        sort: float
        if due_at > book.wall:
            status, sort = DELAYED, due_at
        else:
            # The job is ready since this instant, not since it was made.
            status, sort, due_at = READY, rank(job.priority, lost), book.wall
        book.moved(lane, RUNNING, status)
        if status == DELAYED:
            lane.due_at = min(lane.due_at, due_at)
        elif lost >= SUSPECT_LOST:
            lane.suspects += 1
        book.execute(_SQL["again"], (status, sort, tries, lost, due_at, job.extra, verdict, job.seq))

    def lose(self, job: Job) -> None:
        """Handle the death of a held job's worker."""
        lost = job.lost + 1
        if job.asked:
            self.end(job, CANCELLED, lost=lost)
        elif error := given_up(lost, job.lane.most_lost):
            self.bury(job, "lost", error, lost=lost)
        else:
            self.again(job, 0.0, tries=job.tries - 1, lost=lost)

    # --- the job is over --------------------------------------------------------------------------------------

    def bury(
        self, job: Job, reason: Reason, error: str, traceback: str = "", *, lost: int | None = None, verdict: int = 0
    ) -> None:
        """Make a job dead, whatever its status."""
        self.fail(job, reason, error, traceback)
        self.end(job, DEAD, lost=lost, verdict=verdict)

    def fail(self, job: Job, reason: Reason, error: str, traceback: str) -> None:
        """Store why an attempt or the job failed; the caller writes `job.extra`."""
        row = (job.seq, self._book.wall, reason, error[:MOST_ERROR], traceback[-MOST_TRACEBACK:])
        self._book.execute(_SQL["fail"], row)
        self.change(job, job.extra | FAILURE)

    def change(self, job: Job, extra: int) -> None:
        """Change which extra rows belong to the job."""
        if extra != job.extra:
            self._book.undo(setattr, job, "extra", job.extra)
            job.extra = extra

    def end(self, job: Job, status: int, *, lost: int | None = None, verdict: int = 0) -> None:
        """End a job as dead or cancelled, whatever its status; then, recursively, the tasks that wait for it."""
        ended = [(job, status, job.lost if lost is None else lost, verdict)]
        while ended:
            job, status, lost, verdict = ended.pop()
            self._end(job, status, lost, verdict)
            if job.feeds is not None:
                fed = self._fail_fed(job, status)
                if fed is not None:
                    ended.append((fed, DEAD, fed.lost, 0))
            if job.line is not None:
                self.advance(job)

    def _end(self, job: Job, status: int, lost: int, verdict: int) -> None:
        book = self._book
        lane = job.lane
        before = job.status
        if before == RUNNING:
            book.let_go(job)
        elif before == READY and job.lost >= SUSPECT_LOST:
            book.touch(lane)
            lane.suspects -= 1
        said = verdict if before == RUNNING else None
        extra = job.extra
        if status == DEAD:
            book.moved(lane, before, DEAD)
            book.execute(_SQL["end"], (DEAD, 0, lost, extra, said, job.seq))
        else:
            # A cancelled job keeps the error of its last attempt.
            self.tidy(job.seq, extra & ~(BODY | FAILURE))
            extra &= BODY | FAILURE
            if job.keep_s > 0:
                ends_at = book.wall + job.keep_s
                book.moved(lane, before, status)
                book.execute(_SQL["end"], (status, ends_at, lost, extra, said, job.seq))
            else:
                ends_at = book.wall + PROOF_S
                book.moved(lane, before, FORGOTTEN)
                book.execute(_SQL["end_unkept"], (ends_at, lost, extra, said, job.seq))
            lane.ends_at = min(lane.ends_at, ends_at)
        book.over.append(job.id)

    def tidy(self, seq: int, extra: int) -> None:
        """Delete a job's extra rows: those with their bits set in `extra`."""
        execute = self._book.execute
        if extra & BODY:
            execute(_SQL["drop_blob"], (2 * seq,))
        if extra & RESULT:
            execute(_SQL["drop_blob"], (2 * seq + 1,))
        if extra & FAILURE:
            execute(_SQL["unfail"], (seq,))
        if extra & PRIORS:
            execute(_SQL["drop_priors"], (seq,))

    # --- those that wait --------------------------------------------------------------------------------------

    def _fed(self, job: Job) -> tuple[Job, int, int, float] | None:
        """(the task that a job feeds, its waits, broken, due_at); None when that task is gone or can no longer run."""
        row = self._book.execute(_SQL["fed"], (job.feeds,)).fetchone()
        if row is None:
            return None
        fed = self.job(row)
        waits, broken, due_at = row[-3:]
        if fed.status == WAITING or (fed.status == DEAD and broken):
            return fed, waits, broken, due_at
        return None

    def _feed(self, job: Job, result: bytes) -> None:
        """Pass an answer on to the waiting task."""
        found = self._fed(job)
        if found is None:
            return
        fed, waits, broken, due_at = found
        self._book.execute(_SQL["add_prior"], (fed.seq, job.place, result))
        waits -= 1
        self._book.execute(_SQL["feed"], (waits, broken, fed.extra | PRIORS, fed.seq))
        if not waits and fed.status == WAITING:
            if fed.line is None:
                self._start(fed, due_at)
            else:
                self.advance(fed)

    def _fail_fed(self, job: Job, status: int) -> Job | None:
        """Pass a failure on to the waiting task; return that task if it dies of it."""
        found = self._fed(job)
        if found is None:
            return None
        fed, waits, broken, _ = found
        how = "cancelled" if status == CANCELLED else "dead"
        if fed.status == WAITING:
            self.fail(fed, "upstream", f"job {job.id} of {job.lane.name}, on which it depends, is {how}", "")
        self._book.execute(_SQL["feed"], (waits, broken + 1, fed.extra, fed.seq))
        return fed if fed.status == WAITING else None

    def mend(self, job: Job) -> None:
        """After a requeue: revive the task that died of this job, recursively, unless another cause remains."""
        book = self._book
        while job.feeds is not None:
            found = self._fed(job)
            if found is None or not found[2]:
                return
            fed, waits, broken, due_at = found
            broken -= 1
            book.execute(_SQL["feed"], (waits, broken, fed.extra, fed.seq))
            if broken or fed.status != DEAD:
                return
            self.tidy(fed.seq, fed.extra & FAILURE)
            book.moved(fed.lane, DEAD, WAITING)
            book.execute(_SQL["revive"], (WAITING, 0, due_at, fed.extra & ~FAILURE, fed.seq))
            job = fed

    # --- lines ------------------------------------------------------------------------------------------------

    def advance(self, job: Job) -> None:
        """Start the next job with the same ordering key, if none of them is active."""
        place = (job.lane.no, job.line)
        if self._book.execute(_SQL["line_active"], place).fetchone() is not None:
            return
        row = self._book.execute(_SQL["line_first"], place).fetchone()
        if row is not None and not row[-2]:
            self._start(self.job(row), row[-1])

    def _start(self, job: Job, due_at: float) -> None:
        """Make a waiting job delayed or ready."""
        book = self._book
        sort: float
        if due_at > book.wall:
            status, sort = DELAYED, due_at
        else:
            status, sort, due_at = READY, rank(job.priority, job.lost), book.wall
        book.moved(job.lane, WAITING, status)
        if status == DELAYED:
            job.lane.due_at = min(job.lane.due_at, due_at)
        elif job.lost >= SUSPECT_LOST:
            job.lane.suspects += 1
        book.execute(_SQL["start"], (status, sort, due_at, job.seq))

    # --- rows -------------------------------------------------------------------------------------------------

    def job(self, row: tuple[Any, ...]) -> Job:
        """The job of a row that begins with `columns`; the in-memory object if it is held."""
        held = self._book.held.get(row[2])
        return held if held is not None else Job(self._book.by_no[row[0]], *row[1:16])
