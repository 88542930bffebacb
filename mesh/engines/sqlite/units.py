"""Units: the changes of a unit are committed together, and only once.

Owns: applying a unit to all capabilities, rejecting it before anything is written, and detecting a repeated unit.
Leaves to others: each capability's own rules (deferring, settling, log, state, schedules).

Every capability validates a unit first; only when all accept it is anything written. So nothing needs to be rolled
back, and a rejected unit needs no savepoint.

Most units need no record of their own: the rows that they made prove that they were committed (a task, an event, a job
that is done by this attempt), and those are kept for at least PROOF_S. The others are recorded in the table `units`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from mesh.engines.contract import Outcome, Unit
from mesh.engines.sqlite import statements
from mesh.engines.sqlite.book import Book
from mesh.engines.sqlite.deferring import Deferring
from mesh.engines.sqlite.log import Log
from mesh.engines.sqlite.schedules import Schedules
from mesh.engines.sqlite.settling import Settling
from mesh.engines.sqlite.state import State
from mesh.errors import MeshError

_SQL: Final = statements.named("units")

_pack: Final = msgspec.msgpack.Encoder().encode
_outcome: Final = msgspec.msgpack.Decoder(Outcome)


class Units:
    """Units, for one transaction after another."""

    def __init__(
        self,
        book: Book,
        deferring: Deferring,
        settling: Settling,
        log: Log,
        state: State,
        schedules: Schedules,
    ) -> None:
        self._book: Final = book
        self._deferring: Final = deferring
        self._settling: Final = settling
        self._log: Final = log
        self._state: Final = state
        self._schedules: Final = schedules
        self._done: dict[str, Outcome] = {}
        self._rows: list[tuple[Any, ...]] = []

    def begin(self) -> None:
        """Begin a transaction."""
        self._done = {}
        self._rows = []

    def flush(self) -> None:
        """Write pending rows."""
        if self._rows:
            self._book.executemany(_SQL["add"], self._rows)
            self._rows = []

    def apply(self, units: Sequence[Unit]) -> list[Outcome]:
        """See Turn.apply."""
        tasks = [task.id for unit in units if unit.tasks for task in unit.tasks]
        if tasks:
            self._deferring.learn(tasks)
        events = [event.id for unit in units if unit.events for event in unit.events]
        if events:
            self._log.learn(events)
        done = self._done
        outcomes: list[Outcome] = []
        for unit in units:
            outcome = done.get(unit.id)
            if outcome is None:
                try:
                    outcome = self._apply(unit)
                except MeshError as exc:
                    outcomes.append(Outcome(error=exc.to_wire()))
                    continue
                if unit.id:
                    done[unit.id] = outcome
            outcomes.append(outcome)
        return outcomes

    def _apply(self, unit: Unit) -> Outcome:
        """Raises: MeshError: the unit is rejected; nothing was written."""
        tasks, settle = unit.tasks, unit.settle
        proven = not (unit.writes or unit.advance)
        keyed = False
        if settle:
            if tasks or unit.events:
                proven = False
            for each in settle:
                # Not a lasting proof: the next attempt overwrites that of a retry, and a dead job may be requeued.
                if each.verdict != "done":
                    proven = False
        for task in tasks:
            if task.key:
                keyed = True
        if (keyed or not proven) and unit.id:
            found = self._book.execute(_SQL["find"], (unit.id,)).fetchone()
            if found is not None:
                return _outcome.decode(found[0])
        seen = self._settling.look(settle, alone=not (tasks or unit.events or unit.writes or unit.advance))
        if tasks:
            self._deferring.look(tasks)
        if unit.events:
            self._log.look(unit.events)
        sheet = self._state.look(unit.writes) if unit.writes else None
        if unit.advance:
            self._schedules.look(unit.advance)

        tickets = self._deferring.put(tasks) if tasks else ()
        offsets = self._log.put(unit.events) if unit.events else ()
        entries = self._state.put(sheet) if sheet is not None else ()
        if unit.advance:
            self._schedules.put(unit.advance)
        if seen:
            self._settling.put(seen)
        outcome = Outcome(None, tickets, offsets, entries)
        if unit.id and (not proven or (keyed and not all(ticket.fresh for ticket in tickets))):
            self._rows.append((unit.id, self._book.wall, _pack(outcome)))
        return outcome
