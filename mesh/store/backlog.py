"""What callers asked for and the disk has not taken yet.

Owns: the line, what of it a turn has tried, and telling each caller how it ended: durable, refused, or broken.
Leaves to others: the transaction (the core), when there is a turn (turns).
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

#: Units that are given to the core at once: between two of these the clock is looked at.
SLICE: Final = 128
#: And the tasks and events in them, but for one unit that has more: about 8 ms.
SLICE_ROWS: Final = 512
#: What one turn takes on, for a clock that stands still while it runs.
MOST_UNITS: Final = 4096
#: From so much on, what has come all at once to a store that had nothing to do is done in two turns: whoever the first
#: one answers asks again while the second one runs, and from then on neither side waits for the other. For less, a
#: turn more (as much work as 25 tasks) costs more than it saves.
WORTH_HALVING: Final = 48


class Batch:
    """The units of one call.

    Attributes:
        at: how many are done; outcomes: of those.
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
        """Roughly how many rows it makes or changes."""
        return sum(len(unit.tasks) + len(unit.events) + len(unit.writes) + len(unit.settle) for unit in self.units)


class Deed:
    """Something else that changes the file."""

    __slots__ = ("act", "answer", "error", "value")

    def __init__(self, act: Callable[[Turn], Any], answer: asyncio.Future[Any]) -> None:
        self.act = act
        self.answer = answer
        self.value: Any = None
        self.error: MeshError | None = None


class Backlog:
    """The line of one store.

    Attributes:
        waiting: units in it.
    """

    def __init__(self, most: int, settled: Callable[[str, int], None]) -> None:
        """Args:
        most: units that may wait.
        settled: told (job, attempt) of each lease that a turn has settled.
        """
        self.waiting = 0
        self._most = most
        self._settled = settled
        self._loop = asyncio.get_running_loop()
        self._line: deque[Batch | Deed] = deque()
        # Of the turn that runs: batches that it has begun or gone on with, and at which unit.
        self._tried: list[tuple[Batch, int]] = []
        self._deeds: list[Deed] = []
        # So many are tried one by one: among them is one that the core cannot bear.
        self._careful = 0
        # The last turn has left something in line: callers come at different times.
        self._pressed = False
        # So many at the end of the line are not for the turn that runs.
        self._left = 0
        self._closed = False

    def __bool__(self) -> bool:
        return bool(self._line)

    # --- asking -------------------------------------------------------------------------------------------------

    def add(self, units: Sequence[Unit]) -> asyncio.Future[list[Outcome]]:
        """Units; their outcomes.

        Raises:
            Overloaded: more units wait than [store] backlog allows.
        """
        if self.waiting and self.waiting + len(units) > self._most:
            raise Overloaded(
                f"{self.waiting} units wait for the disk already, {len(units)} more are above [store] backlog = "
                f"{self._most}"
            )
        batch = Batch(units, self._loop.create_future())
        if self._enter(batch):
            self.waiting += len(units)
        return batch.answer

    def add_deed(self, act: Callable[[Turn], T]) -> asyncio.Future[T]:
        """Something else; what it returned or the MeshError that it raised."""
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
        """Nothing is taken any more; whoever waits is told."""
        self._closed = True
        for item in self._line:
            if not item.answer.done():
                item.answer.set_exception(Unavailable("the store has stopped"))
        self._line.clear()
        self.waiting = 0

    # --- in a turn ----------------------------------------------------------------------------------------------

    def work(self, turn: Turn, enough: Callable[[], bool]) -> int:
        """Do what stands first in line, until it is enough; how much that was. `committed` or another end follows."""
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
        """How many at the end of the line the next turn should have."""
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
        """Some units at the head of the line, of as many batches as it takes; how many."""
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
                # Whoever asked is gone, and will ask again.
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
        """How many units and deeds the turn has tried."""
        return len(self._deeds) + sum(batch.at - start for batch, start in self._tried)

    # --- how a turn ends ----------------------------------------------------------------------------------------

    def committed(self) -> None:
        """All of it is durable."""
        for deed in self._deeds:
            if not deed.answer.done():
                if deed.error is None:
                    deed.answer.set_result(deed.value)
                else:
                    deed.answer.set_exception(deed.error)
        self._end()

    def refused(self, error: MeshError) -> None:
        """Nothing of it was done; this is what each of them is told. A turn that did not even begin stands for all that
        would have been in it."""
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
        """It may have been done, or not: callers are told what they are told of a link that broke. They ask the next
        store, which knows what was done."""
        if not self.tried:
            self._take_all()
        lost = "the store stops, and cannot tell whether this was done; the same may be sent again"
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
        """Nothing of it was done, and nobody foresaw why. Whoever's fault it is, it must not cost the others: all of it
        is tried again, one by one."""
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
        """Answer what is complete; a batch that is not stays in sight until it is."""
        self._pressed = bool(self._line)
        for batch, _ in self._tried:
            if batch.complete:
                self.waiting -= len(batch.units)
                if not batch.answer.done():
                    batch.answer.set_result(batch.outcomes)
        self._tried = [(batch, batch.at) for batch, _ in self._tried if not batch.complete]
        self._deeds.clear()

    def _take_all(self) -> None:
        """Count everything that waits as tried."""
        self._tried.clear()
        for item in self._line:
            if isinstance(item, Deed):
                self._deeds.append(item)
            else:
                self._tried.append((item, item.at))
                item.at = len(item.units)
        self._line.clear()
