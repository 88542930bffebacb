"""The contract of an engine: its capabilities, and which of them it can commit together.

Owns: the unit that spans capabilities, the Protocol of a whole engine, and the base of engines that lack some.
Leaves to others: the names of the capabilities (capabilities), the contract of each (tasks.engine, events.log, state,
schedules, locks), making engines (registry), choosing (choose).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Protocol

import msgspec

from mesh.engines.capabilities import CAPABILITIES as CAPABILITIES
from mesh.engines.capabilities import Capability as Capability
from mesh.errors import NotOffered
from mesh.events.log import EventLog, NewEvent
from mesh.locks.contract import Locks
from mesh.schedules.contract import Advance, Schedules
from mesh.state.contract import Entry, StateStore, Write
from mesh.tasks.contract import NewTask, Settlement, Ticket
from mesh.tasks.engine import Jobs, Leases, Queues

#: The attributes of an engine that are contracts of their own.
CONTRACTS: Final = frozenset(("leases", "queues", "jobs", "events", "state", "schedules", "locks"))


class Unit(msgspec.Struct, array_like=True, frozen=True):
    """Changes that are committed together: all of them, or none.

    Attributes:
        id: made by the caller (mesh.ids.job_id); a unit is committed once, however often it is sent. An engine
            remembers ids for at least ten minutes. "" for a unit that consists of settlements only and need not be
            remembered: any number of units may have the id "".
        settle: acknowledgements; a stale one rejects the whole unit (LeaseLost). In a unit with other changes, a
            settlement that was committed before is stale too, even with the same verdict: otherwise the other changes
            would be made twice.
        advance: schedules; an outdated `from_at` rejects the whole unit (Conflict).
    """

    id: str
    tasks: Sequence[NewTask] = ()
    events: Sequence[NewEvent] = ()
    writes: Sequence[Write] = ()
    settle: Sequence[Settlement] = ()
    advance: Sequence[Advance] = ()


class Outcome(msgspec.Struct, array_like=True, frozen=True):
    """The result of a unit.

    Attributes:
        error: in the form of mesh.errors.to_wire; when set, nothing was done.
        tickets, offsets, entries: the results of the unit's tasks, events and writes, in order.
    """

    error: dict[str, Any] | None = None
    tickets: Sequence[Ticket] = ()
    offsets: Sequence[int] = ()
    entries: Sequence[Entry | None] = ()


class Engine(Protocol):
    """One engine as one process uses it.

    Attributes:
        name: as in mesh.toml.
        offers: its capabilities. The attribute of a missing capability raises NotOffered (see `PartialEngine`).
        together: the capabilities that one unit may mix. The settlement of a task's lease counts as "queues", that of
            an event's delivery as "events".
        leases: of an engine with `queues`, with `events`, or with both.

    An engine may have the attribute `authorizes = True`: it applies [access] to each caller, and marks principals that
    a caller may not assert (mesh.engines.principals). Otherwise workers with [access] mark the principals of all
    leases.
    """

    @property
    def name(self) -> str: ...
    @property
    def offers(self) -> frozenset[Capability]: ...
    @property
    def together(self) -> frozenset[Capability]: ...
    @property
    def leases(self) -> Leases: ...
    @property
    def queues(self) -> Queues: ...
    @property
    def jobs(self) -> Jobs: ...
    @property
    def events(self) -> EventLog: ...
    @property
    def state(self) -> StateStore: ...
    @property
    def schedules(self) -> Schedules: ...
    @property
    def locks(self) -> Locks: ...

    async def commit(self, unit: Unit, *, timeout_s: float) -> Outcome:
        """Commit a unit; return when it is durable.

        Raises:
            Conflict, LeaseLost, BadRequest, Unwritable, TryLater: nothing was done.
            Uncertain: the unit may have been committed; the same unit may be sent again.
            NotOffered: the unit mixes capabilities that this engine cannot commit together.
        """

    async def close(self) -> None:
        """Close sessions and connections. Idempotent."""


class PartialEngine:
    """A base class for engines that offer only some capabilities: the contracts that are not set raise NotOffered.

    A subclass sets the attributes of Engine that it has, and `commit` if it commits anything together.
    """

    name: str = ""
    offers: frozenset[Capability] = frozenset()
    together: frozenset[Capability] = frozenset()

    def __getattr__(self, attribute: str) -> Any:
        if attribute in CONTRACTS:
            # Leases are those of queues or events.
            raise not_offered(self.name, "queues" if attribute == "leases" else attribute)
        raise AttributeError(f"{type(self).__name__} has no attribute {attribute!r}")

    async def commit(self, unit: Unit, *, timeout_s: float) -> Outcome:
        """See Engine."""
        raise not_offered(self.name, "atomic")

    async def close(self) -> None:
        """See Engine."""


def not_offered(engine: str, what: str) -> NotOffered:
    """The error of an engine that is asked for a contract or capability that it lacks."""
    return NotOffered(f'the engine "{engine}" offers no {what}', details={"engine": engine, "capability": what})
