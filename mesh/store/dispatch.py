"""Which worker gets which task next: credit, limits over the whole mesh, and fairness.

Owns: which session holds which leases, remaining credit and limits, the next claim, and when to look again.
Leaves to others: the tasks and their order (the core), live sessions (sessions), claiming and sending (turns).

There is no socket, loop or clock here: callers report events by methods, `now` is passed in, and `next` returns one
claim after another until nothing more can be leased.

- Between queues: round robin; each visit grants at most QUANTUM leases, so that no queue starves another.
- Between workers: the worker with the fewest leases of the queue, then the one served longest ago. The ready tasks are
  divided among the workers with free credit, so that the first one does not take all.
- A suspect (a task that was lost twice) is leased only to a worker without leases, and alone. When every worker is
  busy, one of them is kept back for it, for a limited time: a worker with an hour's work should not idle meanwhile.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from mesh.engines.semantics.suspects import KEEP_BACK_S as KEEP_BACK_S
from mesh.engines.semantics.token_bucket import Bucket
from mesh.tasks.contract import Queue

#: Leases that one visit of a queue grants.
QUANTUM: Final = 256
#: A worker is kept back for KEEP_BACK_S at first; doubled each time, up to this.
LONGEST_KEEP_BACK_S: Final = 600.0


class Claim(NamedTuple):
    """Lease at most `most` tasks of this queue to this worker; `alone`: one suspect."""

    queue: str
    session: str
    most: int
    alone: bool = False


class Seat:
    """One worker at one queue.

    Attributes:
        credit: how many leases it holds at most at once; held: how many it has.
        served: when it was last served, as a running number.
    """

    __slots__ = ("credit", "held", "party", "served")

    def __init__(self, party: Party, credit: int) -> None:
        self.party = party
        self.credit = credit
        self.held = 0
        self.served = 0

    @property
    def free(self) -> int:
        return self.credit - self.held


class Party:
    """One worker's session.

    Attributes:
        open: it accepts new leases now: it is subscribed, reads its stream and was not asked to stop.
        holds: how many leases it has.
        alone: it runs a suspect, and gets no other lease meanwhile.
        kept_for: the queue with the suspect that it is kept back for.
    """

    __slots__ = ("alone", "holds", "kept_for", "open", "seats", "session")

    def __init__(self, session: str) -> None:
        self.session = session
        self.open = False
        self.holds = 0
        self.alone = False
        self.kept_for: DispatchQueue | None = None
        self.seats: dict[str, Seat] = {}


class DispatchQueue:
    """One queue.

    Attributes:
        ready: how many tasks may be claimed, as far as is known; suspects: how many more must run alone.
        running: leases on it, over all sessions.
        in_ring: it is in the ring. Every change that may make it claimable puts it there; `next` removes it when it is
            not claimable.
        kept: the worker that is kept back for a suspect; `keep_until_at`: when that, or the pause after it, ends.
    """

    __slots__ = (
        "bucket",
        "concurrency",
        "in_ring",
        "keep_s",
        "keep_until_at",
        "kept",
        "name",
        "ready",
        "running",
        "seats",
        "suspects",
    )

    def __init__(self, name: str, now: float) -> None:
        self.name = name
        self.bucket = Bucket(0.0, 1, now)
        self.concurrency = 0
        self.ready = 0
        self.suspects = 0
        self.running = 0
        self.in_ring = False
        self.seats: dict[str, Seat] = {}
        self.kept: Party | None = None
        self.keep_s = KEEP_BACK_S
        self.keep_until_at = 0.0

    def room(self, most: int, now: float) -> int:
        """How many more leases the limits of the whole mesh allow, at most `most`."""
        if self.concurrency:
            most = min(most, self.concurrency - self.running)
        return self.bucket.left(now, most) if most > 0 else 0

    def best(self) -> tuple[Seat | None, int]:
        """The worker to serve next, and the number of workers with free credit."""
        best: Seat | None = None
        count = 0
        for seat in self.seats.values():
            party = seat.party
            if seat.held >= seat.credit or not party.open or party.alone or party.kept_for is not None:
                continue
            count += 1
            if best is None or (seat.held, seat.served) < (best.held, best.served):
                best = seat
        return best, count


class Dispatch:
    """All leases, and all queues and workers between which to lease."""

    def __init__(self) -> None:
        self._lines: dict[str, DispatchQueue] = {}
        self._parties: dict[str, Party] = {}
        self._leases: dict[str, tuple[int, Party, DispatchQueue]] = {}
        self._ring: deque[DispatchQueue] = deque()
        # Queues that wait for a token -> when one is available.
        self._rated: dict[DispatchQueue, float] = {}
        self._suspected: dict[DispatchQueue, None] = {}
        self._count = 0

    # --- workers ------------------------------------------------------------------------------------------------

    def attach(self, session: str, queues: Iterable[Queue], now: float) -> None:
        """Set the queues that a worker runs; its leases stay. It gets no lease before `open`."""
        party = self._party(session)
        for name in party.seats:
            self._lines[name].seats.pop(session, None)
        party.seats = {}
        for queue in queues:
            line = self._line(queue.name, now)
            line.bucket.change(queue.rate_per_s, queue.burst, now)
            line.concurrency = max(0, queue.concurrency)
            seat = party.seats[queue.name] = line.seats[session] = Seat(party, max(0, queue.credit))
            self._ring_up(line)
            seat.held = sum(1 for _, owner, place in self._leases.values() if owner is party and place is line)

    def open(self, session: str) -> None:
        """The session accepts new leases."""
        party = self._parties.get(session)
        if party is not None and not party.open:
            party.open = True
            for name in party.seats:
                self._ring_up(self._lines[name])

    def shut(self, session: str) -> None:
        """The session accepts no new leases for now; it keeps those that it holds."""
        party = self._parties.get(session)
        if party is not None:
            party.open = False
            self._set_free(party)

    def leave(self, session: str) -> None:
        """Remove the session and its leases."""
        party = self._parties.pop(session, None)
        if party is None:
            return
        self._set_free(party)
        for id, (_, owner, line) in tuple(self._leases.items()):
            if owner is party:
                del self._leases[id]
                line.running -= 1
                self._ring_up(line)
        for name in party.seats:
            del self._lines[name].seats[session]

    def workers(self, queue: str) -> int:
        """How many sessions are subscribed to a queue."""
        line = self._lines.get(queue)
        return len(line.seats) if line is not None else 0

    def limits(self, queue: str) -> tuple[float, int]:
        """(leases per second, leases at once) over the whole mesh; 0 for no limit."""
        line = self._lines.get(queue)
        return (line.bucket.rate_per_s, line.concurrency) if line is not None else (0.0, 0)

    def holds(self, session: str) -> int:
        """How many leases a session has."""
        party = self._parties.get(session)
        return party.holds if party is not None else 0

    # --- tasks and leases ---------------------------------------------------------------------------------------

    def ready(self, queue: str, count: int, suspects: int, now: float) -> None:
        """Set how many tasks of a queue may be claimed now, and how many more only alone (`suspects`)."""
        line = self._line(queue, now)
        line.ready = count
        line.suspects = suspects
        if count:
            self._ring_up(line)
        if suspects:
            self._suspected[line] = None
        else:
            self._no_suspects(line)

    def hold(self, session: str, queue: str, id: str, attempt: int, now: float, *, alone: bool = False) -> None:
        """Record a session's lease: it was just claimed, or found when the store started."""
        party = self._party(session)
        line = self._line(queue, now)
        self._leases[id] = (attempt, party, line)
        line.running += 1
        party.holds += 1
        party.alone = party.alone or alone
        seat = party.seats.get(queue)
        if seat is not None:
            seat.held += 1

    def let_go(self, id: str, attempt: int) -> None:
        """Remove a lease that is over. An unknown lease is ignored."""
        lease = self._leases.get(id)
        if lease is None or lease[0] != attempt:
            return
        del self._leases[id]
        _, party, line = lease
        line.running -= 1
        party.holds -= 1
        seat = party.seats.get(line.name)
        if seat is not None:
            seat.held -= 1
        if party.alone and not party.holds:
            party.alone = False
            for name in party.seats:
                self._ring_up(self._lines[name])
        self._ring_up(line)

    def leases(self, session: str) -> set[tuple[str, int]]:
        """(id, attempt) of the leases of a session."""
        party = self._parties.get(session)
        if party is None or not party.holds:
            return set()
        return {(id, attempt) for id, (attempt, owner, _) in self._leases.items() if owner is party}

    def queue_of(self, id: str) -> str:
        """The queue of a job that is leased; "" for any other."""
        lease = self._leases.get(id)
        return lease[2].name if lease is not None else ""

    def forget_leases(self) -> None:
        """Remove all leases; the caller records the held ones again."""
        for id, (attempt, _, _) in tuple(self._leases.items()):
            self.let_go(id, attempt)

    def holder(self, id: str) -> tuple[str, int] | None:
        """(session, attempt) of the lease on a job; None without a lease."""
        lease = self._leases.get(id)
        return (lease[1].session, lease[0]) if lease is not None else None

    # --- claims -------------------------------------------------------------------------------------------------

    def next(self, now: float) -> Claim | None:
        """The next claim; None when nothing can be claimed. The caller reports the result of each by `claimed`."""
        if self._rated:
            for line in [line for line, at in self._rated.items() if at <= now]:
                del self._rated[line]
                self._ring_up(line)
        if self._suspected:
            claim = self._next_alone(now)
            if claim is not None:
                return claim
        ring = self._ring
        while ring:
            line = ring.popleft()
            seat, takers = line.best() if line.ready > 0 else (None, 0)
            room = line.room(QUANTUM, now) if seat is not None else 0
            if seat is None or room <= 0:
                line.in_ring = False
                if seat is not None and (not line.concurrency or line.running < line.concurrency):
                    self._rated[line] = line.bucket.next_at(now)
                continue
            ring.append(line)
            share = -(-line.ready // takers)
            return Claim(line.name, seat.party.session, min(seat.free, room, share))
        return None

    def claimed(self, claim: Claim, leases: Sequence[tuple[str, int]], now: float) -> None:
        """Record the result of a claim: (id, attempt) of each lease. Fewer than requested: the queue has no more."""
        line = self._lines[claim.queue]
        if claim.alone:
            line.suspects = max(0, line.suspects - len(leases)) if leases else 0
            if not line.suspects:
                self._no_suspects(line)
            elif line.kept is not None:
                self._set_free(line.kept)
                line.keep_s = KEEP_BACK_S
        else:
            line.ready = line.ready - len(leases) if len(leases) >= claim.most else 0
        line.bucket.take(len(leases))
        for id, attempt in leases:
            self.hold(claim.session, claim.queue, id, attempt, now, alone=claim.alone)
        seat = line.seats.get(claim.session)
        if seat is not None:
            self._count += 1
            seat.served = self._count

    def due_at(self) -> float | None:
        """When to call `next` again, even if nothing happens. Valid only after `next` has returned None."""
        dues = [*self._rated.values(), *(line.keep_until_at for line in self._suspected if line.keep_until_at)]
        return min(dues, default=None)

    # --- suspects -----------------------------------------------------------------------------------------------

    def _next_alone(self, now: float) -> Claim | None:
        for line in tuple(self._suspected):
            if line.keep_until_at and line.keep_until_at <= now:
                self._keep_over(line, now)
            if line.room(1, now) <= 0:
                if not line.concurrency or line.running < line.concurrency:
                    self._rated[line] = line.bucket.next_at(now)
                continue
            takers = [
                seat.party
                for seat in line.seats.values()
                if seat.party.open and seat.credit > 0 and seat.party.kept_for in (None, line)
            ]
            idle = next((party for party in takers if not party.holds), None)
            if idle is not None:
                return Claim(line.name, idle.session, 1, alone=True)
            if takers and not line.keep_until_at:
                # All workers are busy: one worker gets no new leases, until it holds none.
                line.kept = min(takers, key=lambda party: (party.alone, party.holds))
                line.kept.kept_for = line
                line.keep_until_at = now + line.keep_s
        return None

    def _keep_over(self, line: DispatchQueue, now: float) -> None:
        """The kept worker did not become idle in time: it gets leases again, and another is tried after a pause."""
        if line.kept is not None:
            self._set_free(line.kept)
            line.keep_until_at = now + line.keep_s
            line.keep_s = min(line.keep_s * 2, LONGEST_KEEP_BACK_S)
        else:
            line.keep_until_at = 0.0

    def _no_suspects(self, line: DispatchQueue) -> None:
        if self._suspected.pop(line, 0) is None:
            if line.kept is not None:
                self._set_free(line.kept)
            line.keep_s = KEEP_BACK_S
            line.keep_until_at = 0.0

    def _set_free(self, party: Party) -> None:
        """Stop keeping a worker back."""
        line = party.kept_for
        if line is not None:
            line.kept = party.kept_for = None
            line.keep_until_at = 0.0
            for name in party.seats:
                self._ring_up(self._lines[name])

    # --- inside -------------------------------------------------------------------------------------------------

    def _ring_up(self, line: DispatchQueue) -> None:
        if not line.in_ring and line.ready > 0:
            line.in_ring = True
            self._ring.append(line)

    def _party(self, session: str) -> Party:
        party = self._parties.get(session)
        if party is None:
            party = self._parties[session] = Party(session)
        return party

    def _line(self, queue: str, now: float) -> DispatchQueue:
        line = self._lines.get(queue)
        if line is None:
            line = self._lines[queue] = DispatchQueue(queue, now)
        return line
