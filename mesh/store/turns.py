"""Group commit: what arrived together is done in one transaction, and answered after it.

Owns: what waits for the disk, one turn after the other on the loop's own thread, and what follows when one fails.
Leaves to others: the transaction (the core), whom to give tasks (dispatch), what is due by itself (chores).

A turn blocks the loop: statements would fight a thread of their own for the interpreter, and nothing useful can be
answered while the disk is asked. So a turn is bounded, and between two turns the loop reads and writes its sockets.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol, TypeVar

from mesh.clock import Clock, Timer
from mesh.engines.contract import Outcome, Unit
from mesh.engines.sqlite.core import Core, Turn
from mesh.engines.sqlite.disk import Damaged
from mesh.errors import MeshError, Overloaded, RemoteError, Unavailable, Unwritable
from mesh.store.dispatch import Dispatch
from mesh.tasks.contract import Lease
from mesh.telemetry.logs import get_logger

T = TypeVar("T")

log = get_logger("mesh.store")

#: A turn takes on nothing more after so long; with what is in hand then, and the commit, it ends below 20 ms.
BUDGET_S: Final = 0.010
CLAIMS_S: Final = 0.005
#: The same bounds in numbers, for a clock that stands still while a turn runs.
MOST_UNITS: Final = 4096
MOST_LEASES: Final = 2048
#: Units that are given to the core at once: between two of these the clock is looked at.
SLICE: Final = 128
#: After a turn that could not be written: the store tries what it does by itself so much later. Callers try at once.
PAUSE_S: Final = 0.5
#: Between two turns that nobody asked for: what is due at once and does not end must not take all of the loop.
SHORTEST_S: Final = 0.001
#: After so long without a turn the core may tidy up.
REST_S: Final = 1.0


class Batch:
    """The units of one call."""

    __slots__ = ("answer", "at", "outcomes", "units")

    def __init__(self, units: Sequence[Unit], answer: asyncio.Future[list[Outcome]]) -> None:
        self.units = units
        self.answer = answer
        self.outcomes: list[Outcome] = []
        #: How many are done.
        self.at = 0


class Deed:
    """Something else that changes the file."""

    __slots__ = ("act", "answer", "error", "value")

    def __init__(self, act: Callable[[Turn], Any], answer: asyncio.Future[Any]) -> None:
        self.act = act
        self.answer = answer
        self.value: Any = None
        self.error: MeshError | None = None


class Chore(Protocol):
    """Something that is due by itself. Run in a turn; then either `committed` or `undone` is called."""

    def due_at(self, now: float, wall: float) -> float | None:
        """When it is due by the loop's clock; at `now` or before: in a turn as soon as possible. None: not at all."""

    def run(self, turn: Turn, now: float, wall: float) -> None: ...
    def committed(self) -> None: ...
    def undone(self) -> None: ...


class After(Protocol):
    """Told what a turn that is durable has brought."""

    def leased(self, session: str, leases: list[Lease]) -> None: ...
    def stopping(self, session: str, id: str, attempt: int) -> None: ...
    def over(self, jobs: Sequence[str]) -> None: ...
    def damaged(self, error: Damaged) -> None: ...


class Figures:
    """What turns have done, for metrics."""

    __slots__ = ("failures", "last_s", "leases", "most_s", "settled", "total_s", "turns", "units")

    def __init__(self) -> None:
        self.turns = 0
        self.failures = 0
        self.units = 0
        self.leases = 0
        self.total_s = 0.0
        self.last_s = 0.0
        #: The longest turn since it was last asked for.
        self.most_s = 0.0


class Turns:
    """All changes of one file. One event loop owns it."""

    def __init__(
        self, core: Core, clock: Clock, dispatch: Dispatch, after: After, chores: Sequence[Chore], *, backlog: int
    ) -> None:
        self._core = core
        self._clock = clock
        self._now = clock.now
        self._dispatch = dispatch
        self._after = after
        self._chores = chores
        self._backlog = backlog
        self._loop = asyncio.get_running_loop()
        self._queue: deque[Batch | Deed] = deque()
        #: Units that wait for the disk.
        self.waiting = 0
        self.figures = Figures()
        #: Why the last turn could not be written; "" when it could.
        self.trouble = ""
        self._scheduled = False
        self._timer: Timer | None = None
        self._timer_at = 0.0
        # What the store does by itself waits until then, after a turn that could not be written.
        self._pause_until_at = 0.0
        # When the core may tidy up, if nothing happens before; 0 when it has.
        self._rest_at = 0.0
        # So many units and deeds are tried one by one: among them is one that the core cannot bear.
        self._careful = 0
        self._closed = False
        # Of the turn that runs: what it has taken from the queue.
        self._tried: list[tuple[Batch, int]] = []
        self._deeds: list[Deed] = []
        self._more = False

    # --- asking -------------------------------------------------------------------------------------------------

    def apply(self, units: Sequence[Unit]) -> asyncio.Future[list[Outcome]]:
        """Do these units; their outcomes, when they are durable.

        Raises:
            Overloaded: more units wait for the disk than [store] backlog allows.
        """
        if self.waiting and self.waiting + len(units) > self._backlog:
            raise Overloaded(
                f"{self.waiting} units wait for the disk already, {len(units)} more are above [store] backlog = "
                f"{self._backlog}"
            )
        batch = Batch(units, self._loop.create_future())
        self.waiting += len(units)
        self._enter(batch)
        return batch.answer

    def do(self, act: Callable[[Turn], T]) -> asyncio.Future[T]:
        """Do something else in a turn; what it returned or the MeshError that it raised, when that is durable. A
        MeshError leaves no trace."""
        deed = Deed(act, self._loop.create_future())
        self._enter(deed)
        return deed.answer

    def wake(self) -> None:
        """Something has changed: look whether there is anything to do."""
        if not self._scheduled and not self._closed:
            self._scheduled = True
            self._loop.call_soon(self._run)

    def _enter(self, item: Batch | Deed) -> None:
        if self._closed:
            item.answer.set_exception(Unavailable("the store has stopped"))
            return
        self._queue.append(item)
        self.wake()

    def close(self) -> None:
        """No turn after this."""
        self._closed = True
        self._stop_timer()
        for item in self._queue:
            if not item.answer.done():
                item.answer.set_exception(Unavailable("the store has stopped"))
        self._queue.clear()
        self.waiting = 0

    # --- one turn -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        self._scheduled = False
        if self._closed:
            return
        now = self._now()
        wall = self._clock.wall()
        by_itself = now >= self._pause_until_at
        due = [chore for chore in self._chores if _is_due(chore, now, wall)] if by_itself else []
        claim = self._dispatch.next(now) if by_itself and not self._queue and not due else None
        if self._queue or due or claim is not None:
            self._turn(now, wall, by_itself)
            self._rest_at = now + REST_S
        elif self._rest_at and now >= self._rest_at:
            self._rest_at = 0.0
            self._core.rest()
        if self._queue or self._more:
            self._more = False
            self.wake()
        else:
            self._sleep()

    def _turn(self, now: float, wall: float, by_itself: bool) -> None:
        figures = self.figures
        given: list[tuple[str, list[Lease]]] = []
        turn: Turn | None = None
        try:
            with self._core.turn(wall) as turn:
                count = self._work(turn, now)
                if by_itself:
                    for chore in self._chores:
                        chore.run(turn, now, wall)
                    self._claim(turn, now, given)
        except Unwritable as error:
            self._undone(error)
            return
        except Damaged as error:
            self._undone(error)
            self._after.damaged(error)
            return
        except Exception as exc:
            self._broken(exc)
            return
        took_s = self._now() - now
        figures.turns += 1
        figures.units += count
        figures.last_s = took_s
        figures.total_s += took_s
        figures.most_s = max(figures.most_s, took_s)
        if self.trouble and (count or given):
            log.info("the file takes what is written again")
            self.trouble = ""
            self._pause_until_at = 0.0
            self._more = True
        self._committed(turn, given)

    def _work(self, turn: Turn, now: float) -> int:
        """What callers asked for, as much as fits; how many units that was."""
        queue = self._queue
        stop_at = now + BUDGET_S
        count = 0
        while queue and count < MOST_UNITS:
            if isinstance(queue[0], Deed):
                deed = queue.popleft()
                assert isinstance(deed, Deed)
                self._deeds.append(deed)
                if not deed.answer.done():
                    try:
                        deed.value = deed.act(turn)
                    except (Unwritable, Damaged):
                        raise
                    except MeshError as error:
                        deed.error = error
                count += 1
            else:
                count += self._slice(turn)
            if self._careful:
                self._careful -= 1
                break
            if self._now() >= stop_at:
                break
        return count

    def _slice(self, turn: Turn) -> int:
        """Some units at the head of the queue; how many."""
        queue = self._queue
        most = 1 if self._careful else SLICE
        units: list[Unit] = []
        parts: list[tuple[Batch, int]] = []
        while queue and len(units) < most:
            batch = queue[0]
            if isinstance(batch, Deed):
                break
            if batch.at == 0:
                self._tried.append((batch, 0))
            if batch.answer.done() and batch.at == 0:
                # Whoever asked is gone, and will ask again.
                part: Sequence[Unit] = ()
                batch.at = len(batch.units)
            else:
                part = batch.units[batch.at : batch.at + most - len(units)]
                parts.append((batch, len(part)))
                units.extend(part)
                batch.at += len(part)
            if batch.at >= len(batch.units):
                queue.popleft()
        if not units:
            return 0
        outcomes = turn.apply(units)
        at = 0
        for batch, length in parts:
            batch.outcomes.extend(outcomes[at : at + length])
            at += length
        let_go = self._dispatch.let_go
        for unit, outcome in zip(units, outcomes, strict=True):
            if unit.settle and outcome.error is None:
                for settled in unit.settle:
                    let_go(settled.id, settled.attempt)
        return len(units)

    def _claim(self, turn: Turn, now: float, given: list[tuple[str, list[Lease]]]) -> None:
        """Lease what may be leased."""
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
        self.figures.leases += count

    # --- after a turn -------------------------------------------------------------------------------------------

    def _committed(self, turn: Turn, given: list[tuple[str, list[Lease]]]) -> None:
        for batch, _ in self._tried:
            if batch.at >= len(batch.units):
                self.waiting -= len(batch.units)
                if not batch.answer.done():
                    batch.answer.set_result(batch.outcomes)
        for deed in self._deeds:
            if not deed.answer.done():
                if deed.error is None:
                    deed.answer.set_result(deed.value)
                else:
                    deed.answer.set_exception(deed.error)
        # A batch that is not finished stays in sight until it is.
        self._tried = [(batch, batch.at) for batch, _ in self._tried if batch.at < len(batch.units)]
        self._deeds.clear()
        for chore in self._chores:
            chore.committed()
        after = self._after
        for session, leases in given:
            after.leased(session, leases)
        for session, id, attempt in turn.stopping:
            after.stopping(session, id, attempt)
        if turn.over:
            after.over(turn.over)

    def _undone(self, error: Unwritable | Damaged) -> None:
        """The file took nothing: whoever asked is told at once; what the store does by itself is tried again later."""
        self.figures.failures += 1
        if not self.trouble:
            log.error("the file takes nothing; reading goes on, writers are told", reason=error.message)
        self.trouble = error.message
        self._pause_until_at = self._now() + PAUSE_S
        refused = Outcome(error.to_wire())
        if not self._was_tried():
            # It did not even begin: nobody's would.
            self._take_all()
        for batch, start in self._tried:
            batch.outcomes[start:] = [refused] * (batch.at - start)
            if batch.at >= len(batch.units):
                self.waiting -= len(batch.units)
                if not batch.answer.done():
                    batch.answer.set_result(batch.outcomes)
        for deed in self._deeds:
            if not deed.answer.done():
                deed.answer.set_exception(type(error)(error.message, details=error.details))
        self._tried = [(batch, batch.at) for batch, _ in self._tried if batch.at < len(batch.units)]
        self._deeds.clear()
        self._start_over()

    def _was_tried(self) -> int:
        """How many units and deeds the turn has tried."""
        return len(self._deeds) + sum(batch.at - start for batch, start in self._tried)

    def _take_all(self) -> None:
        """Count everything that waits as tried."""
        self._tried.clear()
        for item in self._queue:
            if isinstance(item, Deed):
                self._deeds.append(item)
            else:
                self._tried.append((item, item.at))
                item.at = len(item.units)
        self._queue.clear()

    def _broken(self, exc: Exception) -> None:
        """Nobody foresaw this. Whoever's fault it is, it must not cost the others: all is tried again, one by one."""
        self.figures.failures += 1
        tried = self._was_tried()
        log.error("a turn failed", units=tried, exc_info=(type(exc), exc, exc.__traceback__))
        if tried > 1:
            self._careful = tried
            for deed in reversed(self._deeds):
                self._queue.appendleft(deed)
            for batch, start in reversed(self._tried):
                if batch.at >= len(batch.units):
                    self._queue.appendleft(batch)
                batch.at = start
                del batch.outcomes[start:]
            self._tried = [(batch, start) for batch, start in self._tried if start > 0]
        else:
            if not tried:
                self._take_all()
            error = RemoteError(f"the store failed at this: {exc}", type_name=type(exc).__name__)
            for deed in self._deeds:
                if not deed.answer.done():
                    deed.answer.set_exception(error)
            for batch, start in self._tried:
                batch.outcomes[start:] = [Outcome(error.to_wire())] * (batch.at - start)
                if batch.at >= len(batch.units):
                    self.waiting -= len(batch.units)
                    if not batch.answer.done():
                        batch.answer.set_result(batch.outcomes)
            self._tried = [(batch, batch.at) for batch, _ in self._tried if batch.at < len(batch.units)]
            if not tried:
                self._pause_until_at = self._now() + PAUSE_S
        self._deeds.clear()
        self._start_over()

    def _start_over(self) -> None:
        """The turn has changed nothing: neither has what we made of it."""
        for chore in self._chores:
            chore.undone()
        self.recall()

    def recall(self) -> None:
        """Ask the core what is held and what is ready; what was known of that is forgotten."""
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
        """Be woken when something is due by itself."""
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
        if not dues:
            self._stop_timer()
            return
        at = max(min(dues), self._pause_until_at, now + SHORTEST_S)
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
