"""The queue of requests that are not committed yet.

Owns: the queue, which of its items a transaction has tried, and answering each caller: durable, rejected, or failed.
Leaves to others: the transaction (the core), when it runs (turns).
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from mesh.engines.contract import Outcome, Unit
from mesh.engines.sqlite.core import Turn
from mesh.engines.sqlite.disk import Fatal
from mesh.errors import LinkLost, MeshError, Overloaded, RemoteError, Unavailable, Unwritable

T = TypeVar("T")

#: Units that are passed to the core at once; the clock is read between two slices.
SLICE: Final = 128
#: Maximum number of tasks and events in a slice, unless a single unit has more: about 8 ms.
SLICE_ROWS: Final = 512
#: Maximum number of units in one transaction, for a clock that stands still while it runs.
MOST_UNITS: Final = 4096
#: Split bursts of this size, arriving at an idle store, into two transactions: the callers of the first one send again
#: while the second one runs, so that clients and store overlap from then on. For smaller bursts another transaction (as
#: much work as 25 tasks) costs more than it saves.
WORTH_HALVING: Final = 48


class Batch:
    """The units of one call.

    Attributes:
        at: how many units are done; outcomes: their outcomes.
    """

    __slots__ = ("answer", "at", "outcomes", "units")

    def __init__(self, units: Sequence[Unit], answer: asyncio.Future[list[Outcome]]) -> None:
        self.units = units
        self.answer = answer
        self.outcomes: list[Outcome] = []
        self.at = 0

    @property
    def complete(self) -> bool:
        return self.at >= len(self.units)

    @property
    def weight(self) -> int:
        """The approximate number of rows that it makes or changes."""
        return sum(len(unit.tasks) + len(unit.events) + len(unit.writes) + len(unit.settle) for unit in self.units)


class Deed:
    """Any other change of the file."""

    __slots__ = ("act", "answer", "error", "value")

    def __init__(self, act: Callable[[Turn], Any], answer: asyncio.Future[Any]) -> None:
        self.act = act
        self.answer = answer
        self.value: Any = None
        self.error: MeshError | None = None


class Backlog:
    """The queue of one store.

    Attributes:
        waiting: the number of queued units.
    """

    def __init__(self, most: int, settled: Callable[[str, int], None]) -> None:
        """Args:
        most: units that may wait.
        settled: called with (job, attempt) for each lease that a transaction has settled.
        """
        self.waiting = 0
        self._most = most
        self._settled = settled
        self._loop = asyncio.get_running_loop()
        self._line: deque[Batch | Deed] = deque()
        # Of the running transaction: the batches that it has started or continued, and from which unit on.
        self._tried: list[tuple[Batch, int]] = []
        self._deeds: list[Deed] = []
        # So many items are tried one by one: one of them made a transaction fail.
        self._careful = 0
        # The last transaction has left items in the queue: callers are not in step.
        self._pressed = False
        # So many items at the end of the queue are left to the next transaction.
        self._left = 0
        self._closed = False

    def __bool__(self) -> bool:
        return bool(self._line)

    # --- asking -------------------------------------------------------------------------------------------------

    def add(self, units: Sequence[Unit]) -> asyncio.Future[list[Outcome]]:
        """Queue units; the future gets their outcomes.

        Raises:
            Overloaded: more units would wait than [store] backlog allows.
        """
        if self.waiting and self.waiting + len(units) > self._most:
            raise Overloaded(
                f"{self.waiting} units already wait for the disk; {len(units)} more exceed [store] backlog = "
                f"{self._most}"
            )
        batch = Batch(units, self._loop.create_future())
        if self._enter(batch):
            self.waiting += len(units)
        return batch.answer

    def add_deed(self, act: Callable[[Turn], T]) -> asyncio.Future[T]:
        """Queue another change; the future gets its return value or the MeshError that it raised."""
        deed = Deed(act, self._loop.create_future())
        self._enter(deed)
        return deed.answer

    def _enter(self, item: Batch | Deed) -> bool:
        if self._closed:
            item.answer.set_exception(Unavailable("the store has stopped"))
            return False
        self._line.append(item)
        return True

    def close(self) -> None:
        """Accept nothing more; fail all waiting requests with Unavailable."""
        self._closed = True
        for item in self._line:
            if not item.answer.done():
                item.answer.set_exception(Unavailable("the store has stopped"))
        self._line.clear()
        self.waiting = 0

    # --- in a turn ----------------------------------------------------------------------------------------------

    def work(self, turn: Turn, enough: Callable[[], bool]) -> int:
        """Process the queue from its head until `enough()`; return the number of items. The caller then reports the end
        of the transaction: `committed`, `refused`, `doubtful` or `broken`.
        """
        line = self._line
        self._left = left = self._to_leave()
        count = 0
        while len(line) > left and count < MOST_UNITS:
            if isinstance(line[0], Deed):
                self._do(turn, line[0])
                count += 1
            else:
                count += self._slice(turn)
            if self._careful:
                self._careful -= 1
                break
            if enough():
                break
        return count

    def _to_leave(self) -> int:
        """How many items at the end of the queue to leave to the next transaction."""
        line = self._line
        if self._pressed or self._careful or len(line) < 2:
            return 0
        weights = [1 if isinstance(item, Deed) else item.weight for item in line]
        total = sum(weights)
        if total < WORTH_HALVING:
            return 0
        taken = 0
        for at, weight in enumerate(weights, 1):
            taken += weight
            if 2 * taken >= total:
                return len(line) - at
        return 0

    def _do(self, turn: Turn, deed: Deed) -> None:
        self._line.popleft()
        self._deeds.append(deed)
        if deed.answer.done():
            return
        try:
            deed.value = deed.act(turn)
        except (Unwritable, Fatal):
            raise
        except MeshError as error:
            deed.error = error

    def _slice(self, turn: Turn) -> int:
        """Apply some units from the head of the queue, of one or more batches; return how many."""
        line = self._line
        most = 1 if self._careful else SLICE
        units: list[Unit] = []
        parts: list[tuple[Batch, int]] = []
        rows = 0
        while len(line) > self._left and len(units) < most and rows < SLICE_ROWS:
            batch = line[0]
            if isinstance(batch, Deed):
                break
            if batch.at == 0:
                self._tried.append((batch, 0))
            if batch.answer.done() and batch.at == 0:
                # The caller has left; it will send the batch again.
                batch.at = len(batch.units)
            else:
                length = 0
                for unit in itertools.islice(batch.units, batch.at, batch.at + most - len(units)):
                    units.append(unit)
                    length += 1
                    rows += len(unit.tasks) + len(unit.events)
                    if rows >= SLICE_ROWS:
                        break
                parts.append((batch, length))
                batch.at += length
            if batch.complete:
                line.popleft()
        if not units:
            return 0
        outcomes = turn.apply(units)
        at = 0
        for batch, length in parts:
            batch.outcomes.extend(outcomes[at : at + length])
            at += length
        settled = self._settled
        for unit, outcome in zip(units, outcomes, strict=True):
            if unit.settle and outcome.error is None:
                for each in unit.settle:
                    settled(each.id, each.attempt)
        return len(units)

    @property
    def tried(self) -> int:
        """How many units and deeds the transaction has tried."""
        return len(self._deeds) + sum(batch.at - start for batch, start in self._tried)

    # --- how a turn ends ----------------------------------------------------------------------------------------

    def committed(self) -> None:
        """The transaction is durable: answer its callers."""
        for deed in self._deeds:
            if not deed.answer.done():
                if deed.error is None:
                    deed.answer.set_result(deed.value)
                else:
                    deed.answer.set_exception(deed.error)
        self._end()

    def refused(self, error: MeshError) -> None:
        """Nothing was done: answer each caller with this error. When the transaction could not begin, this applies to
        all waiting items."""
        if not self.tried:
            self._take_all()
        outcome = Outcome(error.to_wire())
        for batch, start in self._tried:
            batch.outcomes[start:] = [outcome] * (batch.at - start)
        for deed in self._deeds:
            if not deed.answer.done():
                deed.answer.set_exception(type(error)(error.message, details=error.details))
        self._end()

    def doubtful(self) -> None:
        """It is unknown whether the transaction was committed: answer the callers with LinkLost, as for a broken link.
        They send again to the next store, which knows what was committed."""
        if not self.tried:
            self._take_all()
        lost = "the store is stopping; this may have been applied: it is safe to send it again"
        for batch, _ in self._tried:
            if not batch.answer.done():
                self.waiting -= len(batch.units)
                batch.answer.set_exception(LinkLost(lost))
        for deed in self._deeds:
            if not deed.answer.done():
                deed.answer.set_exception(LinkLost(lost))
        self._tried.clear()
        self._deeds.clear()

    def broken(self, exc: Exception) -> None:
        """Nothing was done because of an unexpected error. Try all items again, one by one, so that only the item that
        causes the error fails."""
        tried = self.tried
        if tried <= 1:
            self.refused(RemoteError(f"the store failed at this: {exc!r}", type_name=type(exc).__name__))
            return
        self._careful = tried
        for deed in reversed(self._deeds):
            deed.error = None
            self._line.appendleft(deed)
        for batch, start in reversed(self._tried):
            if batch.complete:
                self._line.appendleft(batch)
            batch.at = start
            del batch.outcomes[start:]
        self._tried = [(batch, start) for batch, start in self._tried if start > 0]
        self._deeds.clear()

    def _end(self) -> None:
        """Answer complete batches; keep the others until they are complete."""
        self._pressed = bool(self._line)
        for batch, _ in self._tried:
            if batch.complete:
                self.waiting -= len(batch.units)
                if not batch.answer.done():
                    batch.answer.set_result(batch.outcomes)
        self._tried = [(batch, batch.at) for batch, _ in self._tried if not batch.complete]
        self._deeds.clear()

    def _take_all(self) -> None:
        """Count all waiting items as tried."""
        self._tried.clear()
        for item in self._line:
            if isinstance(item, Deed):
                self._deeds.append(item)
            else:
                self._tried.append((item, item.at))
                item.at = len(item.units)
        self._line.clear()
