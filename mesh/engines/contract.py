"""What an engine is: some capabilities, and which of them it can commit together.

Owns: the unit that crosses capabilities, and the Protocol of a whole engine.
Leaves to others: each capability's own contract (tasks, events.log, state, schedules, locks), choosing (choose).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import msgspec

from mesh.events.log import EventLog, NewEvent
from mesh.locks.contract import Locks
from mesh.schedules.contract import Advance, Schedules
from mesh.state.contract import Entry, StateStore, Write
from mesh.tasks.contract import NewTask, Settlement, Tasks, Ticket

Capability = Literal["tasks", "events", "state", "schedules", "locks"]
CAPABILITIES: tuple[Capability, ...] = ("tasks", "events", "state", "schedules", "locks")


class Unit(msgspec.Struct, array_like=True, frozen=True):
    """What is committed together: all of it, or nothing.

    Attributes:
        id: made by whoever commits (mesh.ids.job_id): a unit that was committed is not committed again, however often
            it is sent. An engine remembers ids for ten minutes at least. "" for one that need not be remembered, as it
            holds nothing but settlements: many units may have it, and each is another.
        settle: acknowledgements; a stale one refuses the whole unit (LeaseLost). Beside anything else a settlement that
            was committed before is stale, too, even if it said the same: its effects would happen twice.
        advance: schedules; one whose `from_at` is not the last any more refuses the whole unit (Conflict).
    """

    id: str
    tasks: Sequence[NewTask] = ()
    events: Sequence[NewEvent] = ()
    writes: Sequence[Write] = ()
    settle: Sequence[Settlement] = ()
    advance: Sequence[Advance] = ()


class Outcome(msgspec.Struct, array_like=True, frozen=True):
    """What became of a unit.

    Attributes:
        error: as in mesh.errors.to_wire; then nothing was done.
        tickets, offsets, entries: of its tasks, events and writes, in order.
    """

    error: dict[str, Any] | None = None
    tickets: Sequence[Ticket] = ()
    offsets: Sequence[int] = ()
    entries: Sequence[Entry | None] = ()


class Engine(Protocol):
    """One engine as one process uses it.

    Attributes:
        name: as in mesh.toml.
        offers: its capabilities. The attribute of one that it does not offer raises NotOffered.
        together: the capabilities that one unit may mix. Settlements of leases belong to "tasks" when the lease is a
            task's, and to "events" when it is a delivery's.
    """

    @property
    def name(self) -> str: ...
    @property
    def offers(self) -> frozenset[Capability]: ...
    @property
    def together(self) -> frozenset[Capability]: ...
    @property
    def tasks(self) -> Tasks: ...
    @property
    def events(self) -> EventLog: ...
    @property
    def state(self) -> StateStore: ...
    @property
    def schedules(self) -> Schedules: ...
    @property
    def locks(self) -> Locks: ...

    async def commit(self, unit: Unit, *, timeout_s: float) -> Outcome:
        """Returns when it is durable.

        Raises:
            Conflict, LeaseLost, BadRequest, Unwritable: nothing was done. TryLater: nothing was done.
            Uncertain: it may have been done; the same unit may be committed again.
            NotOffered: it mixes capabilities that this engine cannot commit together.
        """

    async def close(self) -> None:
        """End sessions and connections. Harmless the second time."""
