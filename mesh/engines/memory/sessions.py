"""Workers' sessions: their leases, their deaths, and leasing ready jobs to them.

Owns: credit, suspects that run alone, the silence after which a session has died, and notifying workers.
Leaves to others: the next job of a queue (queue), the life cycle of a job (jobs).

A live session needs no renewal here: engine and worker are in one process. It falls silent only when a test cuts or
kills its process, and dies one lease time later.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections import Counter
from collections.abc import Iterable

from mesh.clock import Clock
from mesh.engines.memory.agenda import HAIR_S, Agenda, Appointment
from mesh.engines.memory.job import Job
from mesh.engines.memory.jobs import Jobs
from mesh.engines.memory.queue import MemoryQueue
from mesh.engines.semantics.suspects import KEEP_BACK_S, is_suspect
from mesh.tasks.contract import Lease, Offer, Receiver


class SessionState:
    """One worker's session.

    Attributes:
        held: the jobs that it has leases on, by id; counts: how many of each queue.
        open: it accepts new leases.
        alone: it holds a suspect, and gets no other lease meanwhile.
        kept_for, kept_until_at: the suspect for which it is kept back, and until when.
        served: when it was last served, as a running number.
        ending: the callback that declares it dead, while it is silent.
    """

    __slots__ = (
        "alone",
        "cancels",
        "counts",
        "credits",
        "ending",
        "held",
        "kept_for",
        "kept_until_at",
        "leases",
        "offer",
        "open",
        "receiver",
        "served",
        "telling",
    )

    def __init__(self, offer: Offer, receiver: Receiver) -> None:
        self.offer = offer
        self.receiver = receiver
        self.credits = {queue.name: queue.credit for queue in offer.queues}
        self.held: dict[str, Job] = {}
        self.counts: Counter[str] = Counter()
        self.open = True
        self.alone = False
        self.kept_for: Job | None = None
        self.kept_until_at = 0.0
        self.served = 0
        self.ending: Appointment | None = None
        self.leases: list[Lease] = []
        self.cancels: list[tuple[str, int]] = []
        self.telling: asyncio.Handle | None = None

    @property
    def silent(self) -> bool:
        return self.ending is not None


class Sessions:
    """All live sessions, and those that are silent but not yet dead."""

    def __init__(self, clock: Clock, agenda: Agenda, *, lease_s: float, unknown_after_s: float) -> None:
        self.jobs: Jobs  # set by Memory, which makes both
        self._clock = clock
        self._agenda = agenda
        self._lease_s = lease_s
        self._unknown_after_s = unknown_after_s
        self._known: dict[str, SessionState] = {}
        self._stirred: dict[str, MemoryQueue] = {}
        self._sharing: asyncio.Handle | None = None
        self._turns = itertools.count(1)

    # --- coming and going ---------------------------------------------------------------------------------

    def attach(self, offer: Offer, receiver: Receiver, held: Iterable[tuple[str, int]]) -> SessionState:
        """Add a session, or replace one that returns; `held`: the leases that it still holds."""
        made = SessionState(offer, receiver)
        before = self._known.get(offer.session)
        if before is not None:
            self._hush(before)
            for job in before.held.values():
                self._take(made, job)
        self._known[offer.session] = made
        for queue in offer.queues:
            self.jobs.queue(queue.name).declare(queue)
        self._reconcile(made, held)
        self._changed()
        return made

    def stop(self, session: SessionState) -> None:
        """Grant no new leases."""
        session.open = False
        session.kept_for = None

    def leave(self, session: SessionState) -> None:
        """End a session: its leases are released."""
        if self._forget(session):
            for job in list(session.held.values()):
                self.jobs.release(job)
            self._changed()

    def fall_silent(self, session: SessionState) -> None:
        """The connection to the session is cut, in both directions."""
        if self._known.get(session.offer.session) is session and not session.silent:
            session.ending = self._agenda.at(self._clock.now() + self._lease_s, self._die, session)

    def speak(self, session: SessionState) -> bool:
        """The connection to the session is restored; return whether the session was still alive."""
        if self._known.get(session.offer.session) is not session:
            return False
        if session.ending is not None:
            session.ending.cancel()
            session.ending = None
            self._reconcile(session, session.receiver.held())
            self._changed()
        return True

    def workers(self, queue: str) -> int:
        """How many sessions are subscribed to a queue."""
        return sum(queue in session.credits for session in self._known.values())

    def _die(self, session: SessionState) -> None:
        if self._forget(session):
            for job in list(session.held.values()):
                self.jobs.lose(job)
            self._changed()
            session.receiver.lost(f"this worker sent nothing for {self._lease_s:g} s")

    def _forget(self, session: SessionState) -> bool:
        """Remove a session; return False when it was removed or replaced before."""
        self._hush(session)
        if self._known.get(session.offer.session) is not session:
            return False
        del self._known[session.offer.session]
        return True

    def _hush(self, session: SessionState) -> None:
        session.open = False
        session.leases.clear()
        session.cancels.clear()
        for pending in (session.ending, session.telling):
            if pending is not None:
                pending.cancel()
        session.ending = session.telling = None

    def _reconcile(self, session: SessionState, held: Iterable[tuple[str, int]]) -> None:
        """Release leases that the worker does not hold (lost on the way); cancel attempts that it holds without one."""
        has = set(held)
        for job in list(session.held.values()):
            if (job.id, job.attempt) not in has:
                self.jobs.release(job)
        for id, attempt in has:
            mine = session.held.get(id)
            if mine is None or mine.attempt != attempt or mine.stopping:
                self._tell(session, cancel=(id, attempt))

    # --- what is held -------------------------------------------------------------------------------------

    def freed(self, name: str, job: Job) -> None:
        """A session no longer holds a job. See Jobs."""
        session = self._known.get(name)
        if session is None or session.held.pop(job.id, None) is None:
            return
        session.counts[job.task.queue] -= 1
        if not session.held:
            session.alone = False
        self._stir_all(session)

    def must_stop(self, job: Job) -> None:
        """Ask the session that runs the job to stop it."""
        session = self._known.get(job.session)
        if session is not None:
            self._tell(session, cancel=(job.id, job.attempt))

    def _take(self, session: SessionState, job: Job) -> None:
        session.held[job.id] = job
        session.counts[job.task.queue] += 1
        session.alone = session.alone or is_suspect(job.lost)

    def _tell(
        self, session: SessionState, *, lease: Lease | None = None, cancel: tuple[str, int] | None = None
    ) -> None:
        if lease is not None:
            session.leases.append(lease)
        if cancel is not None:
            session.cancels.append(cancel)
        if session.telling is None:
            session.telling = asyncio.get_running_loop().call_soon(self._deliver, session)

    def _deliver(self, session: SessionState) -> None:
        session.telling = None
        leases, session.leases = session.leases, []
        cancels, session.cancels = session.cancels, []
        # Messages to a silent worker are lost; `speak` detects that.
        if session.silent:
            return
        if leases:
            session.receiver.leased(leases)
        if cancels:
            session.receiver.cancel(cancels)

    # --- sharing out --------------------------------------------------------------------------------------

    def stir(self, queue: MemoryQueue) -> None:
        """A job of this queue may be leased now: do so when the tick is over."""
        self._stirred[queue.name] = queue
        if self._sharing is None:
            self._sharing = asyncio.get_running_loop().call_soon(self._share_out)

    def _share_out(self) -> None:
        self._sharing = None
        while self._stirred:
            self._share(self._stirred.pop(next(iter(self._stirred))))

    def _share(self, queue: MemoryQueue) -> None:
        self._see_missing(queue)
        if queue.missing_at is not None:
            self._bury_unknown(queue)
            return
        for session in self._known.values():
            kept_for = self._kept_for(session)
            if kept_for is not None and kept_for.task.queue == queue.name and not session.held and self._may_go(queue):
                self._give(queue, kept_for, session)
        aside: list[Job] = []
        while (job := queue.first()) is not None and self._may_go(queue):
            suspect = is_suspect(job.lost)
            taker = self._idle(queue, job) if suspect else self._next(queue)
            if taker is not None:
                self._give(queue, job, taker)
            elif suspect:
                aside.append(queue.aside())
            else:
                break
        for job in aside:
            queue.ready(job)

    def _may_go(self, queue: MemoryQueue) -> bool:
        """Whether the limits over all sessions allow one more lease; when only the rate does not, schedule a retry."""
        open_at = queue.open_at()
        if open_at is not None and open_at > self._clock.now():
            self._look_again(queue, open_at)
            return False
        return open_at is not None

    def _give(self, queue: MemoryQueue, job: Job, session: SessionState) -> None:
        queue.give(job, session.offer.session)
        self._take(session, job)
        session.kept_for = None
        session.served = next(self._turns)
        self._tell(session, lease=job.lease())

    def _next(self, queue: MemoryQueue) -> SessionState | None:
        """The session with free credit that holds the fewest leases of the queue, and was served longest ago."""
        takers = [each for each in self._takers(queue) if self._kept_for(each) is None]
        return min(takers, key=lambda each: (each.counts[queue.name], each.served), default=None)

    def _idle(self, queue: MemoryQueue, suspect: Job) -> SessionState | None:
        """A session without leases; when there is none, keep a busy one back until it has none."""
        takers = [each for each in self._takers(queue) if self._kept_for(each) in (None, suspect)]
        idle = next((each for each in takers if not each.held), None)
        now = self._clock.now()
        if idle is None and takers and not any(self._rested(each, suspect, now) for each in takers):
            kept = min(takers, key=lambda each: len(each.held))
            kept.kept_for, kept.kept_until_at = suspect, now + KEEP_BACK_S
            self._agenda.at(kept.kept_until_at, self._stir_all, kept)
            self._agenda.at(kept.kept_until_at + KEEP_BACK_S, self._stir_all, kept)
        return idle

    def _kept_for(self, session: SessionState) -> Job | None:
        """The suspect for which the session is kept back now."""
        job = session.kept_for
        if job is None or job.status != "ready" or self._clock.now() >= session.kept_until_at:
            return None
        return job

    def _rested(self, session: SessionState, suspect: Job, now: float) -> bool:
        """Whether the session is, or was within the last KEEP_BACK_S, kept back for this suspect."""
        return session.kept_for is suspect and now < session.kept_until_at + KEEP_BACK_S

    def _takers(self, queue: MemoryQueue) -> list[SessionState]:
        return [
            each
            for each in self._known.values()
            if each.open
            and not each.silent
            and not each.alone
            and each.counts[queue.name] < each.credits.get(queue.name, 0)
        ]

    def _stir_all(self, session: SessionState) -> None:
        for queue in session.credits:
            self.stir(self.jobs.queue(queue))

    def _look_again(self, queue: MemoryQueue, at: float) -> None:
        if queue.alarm is not None:
            queue.alarm.cancel()
        queue.alarm = self._agenda.at(at, self.stir, queue)

    # --- unknown queues -----------------------------------------------------------------------------------

    def _changed(self) -> None:
        """After a session came or went: check again which jobs may run, and which queues are declared."""
        for queue in self.jobs.queues.values():
            self._see_missing(queue)
            self.stir(queue)

    def _see_missing(self, queue: MemoryQueue) -> None:
        sessions = self._known.values()
        declared = any(queue.name in session.credits for session in sessions)
        if declared or not any(queue.service in session.offer.services for session in sessions):
            queue.missing_at = None
        elif queue.missing_at is None:
            queue.missing_at = self._clock.now()

    def _bury_unknown(self, queue: MemoryQueue) -> None:
        """Bury jobs that were ready for long enough in a queue that no worker declares."""
        now, wall = self._clock.now(), self._clock.wall()
        missing_since = wall - (now - (queue.missing_at or 0.0))
        error = f"no worker of {queue.service} knows a task {queue.name.rpartition('.')[2]!r}"
        next_at = math.inf
        for job in [job for job in queue.jobs.values() if job.status == "ready"]:
            due_at = max(job.ready_at, missing_since) + self._unknown_after_s
            if due_at <= wall + HAIR_S:
                self.jobs.bury(job, "unknown", error)
            else:
                next_at = min(next_at, due_at)
        if next_at < math.inf:
            self._look_again(queue, now + (next_at - wall))

    def close(self) -> None:
        """Grant no more leases and send nothing to workers."""
        if self._sharing is not None:
            self._sharing.cancel()
            self._sharing = None
        for session in list(self._known.values()):
            self._hush(session)
