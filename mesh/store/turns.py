"""Group commit: requests that arrive together are done in one transaction (a turn), and answered after the commit.

Owns: running transactions one after another on the loop's own thread, their contents, and recovery after a failure.
Leaves to others: callers' requests (backlog), the transaction (the core), leasing tasks (dispatch), maintenance
(maintenance).

A transaction blocks the loop: in a thread of its own it would compete for the interpreter, and nothing useful can be
answered during the commit. So a transaction is bounded, and between two of them the loop reads and writes its sockets.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, Protocol, TypeVar

from mesh.clock import Clock, Timer
from mesh.engines.contract import Outcome, Unit
from mesh.engines.sqlite.core import Core, Turn
from mesh.engines.sqlite.disk import Fatal
from mesh.engines.steady import SteadyClock
from mesh.errors import Unwritable
from mesh.store.backlog import Backlog
from mesh.store.dispatch import Dispatch
from mesh.tasks.contract import Lease
from mesh.telemetry.logs import get_logger
from mesh.telemetry.recent_maximum import RecentMaximum

T = TypeVar("T")

log = get_logger("mesh.store")

#: A transaction starts no more requests after so long; with the running slice and the commit it ends in about 20 ms.
BUDGET_S: Final = 0.008
CLAIMS_S: Final = 0.004
#: The same bound in leases, for a clock that stands still during a transaction.
MOST_LEASES: Final = 2048
#: Pause of the store's own maintenance after a transaction that failed. Callers' requests are tried at once.
PAUSE_S: Final = 0.5
#: Pause between two transactions without requests: maintenance that is always due must not occupy the loop.
SHORTEST_S: Final = 0.001
#: A disk that is nearly full alternates between accepting and rejecting writes: log that at most so often.
SAY_AGAIN_S: Final = 10.0
#: After so long without a transaction the core may do its idle work.
REST_S: Final = 1.0


class Chore(Protocol):
    """One kind of maintenance. `run` is called in a transaction; then either `committed` or `undone` is called."""

    def due_at(self, now: float, wall: float) -> float | None:
        """When it is due by the loop's clock; at `now` or before: as soon as possible. None: not at all."""

    def run(self, turn: Turn, now: float, wall: float) -> None: ...
    def committed(self) -> None: ...
    def undone(self) -> None: ...


class After(Protocol):
    """Callbacks for the results of a durable transaction, and for a corrupt file."""

    def leased(self, session: str, leases: list[Lease]) -> None: ...
    def stopping(self, session: str, id: str, attempt: int) -> None: ...
    def over(self, jobs: Sequence[str]) -> None: ...
    def damaged(self, error: Fatal) -> None: ...


class Figures:
    """Counters of transactions, for metrics."""

    __slots__ = ("_longest", "failures", "leases", "total_s", "turns", "units")

    def __init__(self) -> None:
        self.turns = 0
        self.failures = 0
        self.units = 0
        self.leases = 0
        self.total_s = 0.0
        self._longest = RecentMaximum()

    def took(self, seconds: float, now: float) -> None:
        """A transaction ended at `now`."""
        self.total_s += seconds
        self._longest.note(seconds, now)

    def longest_s(self, now: float) -> float:
        """The longest transaction of the last minute; reading it changes nothing."""
        return self._longest.read(now)


class Turns:
    """All changes of one file. One event loop owns it.

    Attributes:
        trouble: why the last transaction could not be written; "" when it was written.
    """

    def __init__(
        self, core: Core, clock: Clock, dispatch: Dispatch, after: After, chores: Sequence[Chore], *, backlog: int
    ) -> None:
        """`backlog`: units that may wait for the disk."""
        self._core = core
        self._clock = clock
        self._now = clock.now
        # Any other clock is the wall clock itself.
        self._ahead = clock.ahead if isinstance(clock, SteadyClock) else lambda: 0.0
        self._dispatch = dispatch
        self._after = after
        self._chores = chores
        self._loop = asyncio.get_running_loop()
        self._backlog = Backlog(backlog, dispatch.let_go)
        self.figures = Figures()
        self.trouble = ""
        #: Runs at the start of each transaction until one is committed, and then no more.
        self.first: Callable[[Turn], None] | None = None
        self._said = False
        self._say_again_at = 0.0
        self._scheduled = False
        self._timer: Timer | None = None
        self._timer_at = 0.0
        # Maintenance waits until then, after a transaction that could not be written.
        self._pause_until_at = 0.0
        # When the core may do its idle work, if nothing happens before; 0 when it has.
        self._rest_at = 0.0
        self._closed = False
        # The transaction ended before all possible leases were granted.
        self._more = False

    # --- asking -------------------------------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """Units that wait for the disk."""
        return self._backlog.waiting

    def apply(self, units: Sequence[Unit]) -> asyncio.Future[list[Outcome]]:
        """Commit these units; the future gets their outcomes when they are durable.

        Raises:
            Overloaded: too many units wait for the disk already.
        """
        answer = self._backlog.add(units)
        self.wake()
        return answer

    def do(self, act: Callable[[Turn], T]) -> asyncio.Future[T]:
        """Call `act` in a transaction; the future gets its return value or its MeshError when that is durable. An `act`
        that raises a MeshError changes nothing."""
        answer = self._backlog.add_deed(act)
        self.wake()
        return answer

    def wake(self) -> None:
        """Check soon whether there is anything to do. Call this after every change."""
        if not self._scheduled and not self._closed:
            self._scheduled = True
            self._loop.call_soon(self._run)

    def close(self) -> None:
        """Run no more transactions."""
        self._closed = True
        self._stop_timer()
        self._backlog.close()

    # --- one turn -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        self._scheduled = False
        if self._closed:
            return
        try:
            self._look()
        except Fatal as error:
            self._after.damaged(error)
        except Exception:
            # Nothing should fail outside of a transaction; if it does, the store must not stop running.
            log.exception("store.loop_failed")
            self._wake_at(self._now() + PAUSE_S)

    def _look(self) -> None:
        """Run a transaction if there is work, or sleep until there is."""
        now = self._now()
        wall = self._clock.wall()
        by_itself = now >= self._pause_until_at
        # A transaction for callers' requests does the store's own work as well: no need to know whether there is any.
        if self._backlog or (
            by_itself
            and (any(_is_due(chore, now, wall) for chore in self._chores) or self._dispatch.next(now) is not None)
        ):
            self._turn(now, wall, by_itself)
            self._rest_at = now + REST_S
        elif self._rest_at and now >= self._rest_at:
            self._rest_at = 0.0
            self._core.rest()
        if self._closed:
            return
        if self._backlog or self._more:
            self._more = False
            if not self._scheduled:
                self._scheduled = True
                # The next loop iteration writes the answers, the one after it sends them: then the next transaction.
                self._loop.call_soon(self._loop.call_soon, self._run)
        else:
            self._sleep()

    def _turn(self, now: float, wall: float, by_itself: bool) -> None:
        figures = self.figures
        backlog = self._backlog
        given: list[tuple[str, list[Lease]]] = []
        stop_at = now + BUDGET_S
        first = self.first
        try:
            with self._core.turn(wall, self._ahead()) as turn:
                if first is not None:
                    first(turn)
                count = backlog.work(turn, lambda: self._now() >= stop_at)
                if by_itself:
                    for chore in self._chores:
                        chore.run(turn, now, wall)
                    self._claim(turn, now, given)
        except Unwritable as error:
            if not self.trouble and now >= self._say_again_at:
                log.error("store.read_only", reason=error.message)
                self._said, self._say_again_at = True, now + SAY_AGAIN_S
            self.trouble = error.message
            self._pause_until_at = self._now() + PAUSE_S
            backlog.refused(error)
            self._start_over()
            return
        except Fatal as error:
            if error.doubtful:
                backlog.doubtful()
            else:
                backlog.refused(error)
            self._start_over()
            self._after.damaged(error)
            return
        except Exception as exc:
            log.error("transaction.failed", tried=backlog.tried, exc_info=(type(exc), exc, exc.__traceback__))
            if not backlog.tried:
                self._pause_until_at = self._now() + PAUSE_S
            backlog.broken(exc)
            self._start_over()
            return
        self.first = None
        took_s = self._now() - now
        figures.turns += 1
        figures.units += count
        figures.leases += sum(len(leases) for _, leases in given)
        figures.took(took_s, now)
        if self.trouble and (count or given):
            if self._said:
                log.info("store.writable")
            self._said = False
            self.trouble = ""
            self._pause_until_at = 0.0
            self._more = True
        backlog.committed()
        self._tell(turn, given)

    def _claim(self, turn: Turn, now: float, given: list[tuple[str, list[Lease]]]) -> None:
        """Grant all possible leases."""
        core = self._core
        dispatch = self._dispatch
        for queue in turn.woken:
            dispatch.ready(queue, core.ready(queue), core.suspects(queue), now)
        stop_at = self._now() + CLAIMS_S
        count = 0
        while (claim := dispatch.next(now)) is not None:
            leases = turn.claim(claim.queue, claim.most, claim.session, solo=claim.alone)
            dispatch.claimed(claim, [(lease.id, lease.attempt) for lease in leases], now)
            if leases:
                given.append((claim.session, leases))
                count += len(leases)
            if count >= MOST_LEASES or self._now() >= stop_at:
                self._more = True
                break

    def _tell(self, turn: Turn, given: list[tuple[str, list[Lease]]]) -> None:
        """The transaction is durable: report its results."""
        for chore in self._chores:
            chore.committed()
        after = self._after
        for session, leases in given:
            after.leased(session, leases)
        for session, id, attempt in turn.stopping:
            after.stopping(session, id, attempt)
        if turn.over:
            after.over(turn.over)

    def _start_over(self) -> None:
        """The transaction was rolled back: discard what was derived from it."""
        self.figures.failures += 1
        for chore in self._chores:
            chore.undone()
        self.recall()

    def recall(self) -> None:
        """Rebuild the dispatch from the core: which leases are held and which tasks are ready."""
        core = self._core
        dispatch = self._dispatch
        now = self._now()
        dispatch.forget_leases()
        for session, leases in core.held().items():
            for lease in leases:
                dispatch.hold(session, lease.queue, lease.id, lease.attempt, now, alone=lease.suspect)
        for queue in core.names():
            dispatch.ready(queue, core.ready(queue), core.suspects(queue), now)

    # --- when nothing happens -----------------------------------------------------------------------------------

    def _sleep(self) -> None:
        """Set the timer for the next maintenance or claim that is due."""
        now = self._now()
        wall = self._clock.wall()
        dues = [at for chore in self._chores if (at := chore.due_at(now, wall)) is not None]
        at = self._dispatch.due_at()
        if at is not None:
            dues.append(at)
        if self._pause_until_at > now:
            dues.append(self._pause_until_at)
        if self._rest_at:
            dues.append(self._rest_at)
        if dues:
            self._wake_at(max(min(dues), self._pause_until_at, now + SHORTEST_S))
        else:
            self._stop_timer()

    def _wake_at(self, at: float) -> None:
        if self._timer is not None and self._timer_at <= at:
            return
        self._stop_timer()
        self._timer_at = at
        self._timer = self._clock.call_at(at, self._rung)

    def _rung(self) -> None:
        self._timer = None
        self.wake()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _is_due(chore: Chore, now: float, wall: float) -> bool:
    at = chore.due_at(now, wall)
    return at is not None and at <= now
