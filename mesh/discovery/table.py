"""The table of running instances of one client, merged from several hubs that do not coordinate.

Owns: merging the hubs' messages: which instances exist, and when one is gone.
Leaves to others: connections to hubs (agent), time (the caller passes `now`), choosing an instance (policy.balance).

**An instance is in the table as long as at least one claim to it is left.** A hub claims the instances that it lists.
These events withdraw claims:

==================================================  ===========================================================
event at the client                                 claims that it withdraws
==================================================  ===========================================================
any hub reports that the instance left              every claim to it, at once and for good (see `_floors`)
a hub reports that the lease expired, or a hub      that hub's claim, and the stale claims of other hubs. The
that has learned no longer lists the instance       claim of another hub that lists it now stays.
a claim to the same id with a later epoch           every earlier claim, at once and for good
a hub is lost, or restarts and is learning          none: its claims become stale. A stale claim still counts.
for `grace_s`, a hub that has learned has been      all stale claims of lost hubs. A running instance registers
connected and has not listed the instance           with every hub within its lease.
==================================================  ===========================================================
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import msgspec

from mesh.discovery.record import Instance
from mesh.discovery.view import (
    ABSENT,
    ALL_WORDS,
    CHANGE,
    FIRST_WORDS,
    GAP,
    GAPPED,
    LEARN,
    LEARNED,
    LOADS,
    LOSE,
    View,
)

#: Why an instance is gone, in `Change.left`.
LEFT = "left"  # it deregistered
EXPIRED = "expired"  # its lease expired
SUPERSEDED = "superseded"  # a later epoch claims its id
UNLISTED = "unlisted"  # a hub that should list it does not

#: How many grace periods an ended claim is remembered. A hub that missed the deregistration lists the instance for one
#: more lease, and for a second one if it was blocked and learns again; twice that is ample.
FLOOR_GRACES = 4


class Change(NamedTuple):
    """The difference that one event made to the table. Process `left` before `joined`: an id may be in both.

    Attributes:
        only_loads: of the instances in `updated`, only the loads have changed.
    """

    joined: tuple[Instance, ...] = ()
    left: tuple[tuple[Instance, str], ...] = ()
    updated: tuple[Instance, ...] = ()
    only_loads: bool = False

    def __bool__(self) -> bool:
        return bool(self.joined or self.left or self.updated)


NOTHING = Change()


class Table:
    """Every instance to which some hub has a claim.

    The caller chooses the names of hubs (the agent uses their endpoints). Records are not validated here; code that
    reads them from a socket checks their types first.
    """

    def __init__(self, *, grace_s: float = 5.0) -> None:
        """Args:
        grace_s: the hubs' lease, which bounds how long a running instance may be unknown to a hub.
        """
        self.grace_s = grace_s
        #: Incremented with every change except of loads; lets callers cache what they compute from the table.
        self.version = 0
        self._views: dict[str, View] = {}
        self._current: dict[str, Instance] = {}
        self._services: dict[str, dict[str, Instance]] = {}
        self._tuples: dict[str, tuple[Instance, ...]] = {}
        self._known: set[str] = set()
        # id -> (the least epoch that may still claim it, since when). Prevents an instance that left from coming back
        # through a hub that missed its deregistration.
        self._floors: dict[str, tuple[int, float]] = {}

    # --- reading ----------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._current)

    def __iter__(self) -> Iterator[Instance]:
        return iter(tuple(self._current.values()))

    def get(self, instance_id: str) -> Instance | None:
        """The instance with this id; None when it is not in the table."""
        return self._current.get(instance_id)

    def services(self) -> list[str]:
        """Names of the services with at least one instance, sorted."""
        return sorted(self._services)

    def instances(self, service: str) -> tuple[Instance, ...]:
        """All instances of a service, in the order in which they became known; the same tuple until that changes."""
        known = self._tuples.get(service)
        if known is None:
            known = self._tuples[service] = tuple(self._services.get(service, {}).values())
        return known

    def known(self, service: str) -> bool:
        """Whether the table ever had an instance of the service: distinguishes "none now" from "no such service"."""
        return service in self._known

    @property
    def certain(self) -> bool:
        """Whether some connected hub has learned: only then is an instance that the table lacks known to be gone."""
        return any(view.state == LEARNED for view in self._views.values())

    def view(self, hub: str) -> View | None:
        """The view of one hub, read-only; None when the table has none."""
        return self._views.get(hub)

    # --- messages of hubs -------------------------------------------------------------------------

    def snapshot(
        self,
        hub: str,
        epoch: int,
        number: int,
        learning: bool,
        records: Iterable[Instance],
        now: float = 0.0,
        *,
        hub_id: str = "",
    ) -> Change:
        """Replace a hub's claims by all that it lists; numbered changes follow from `number` + 1."""
        view = self._views.setdefault(hub, View())
        view.enter(FIRST_WORDS if learning else ALL_WORDS, now)
        view.hub_id, view.epoch, view.number = hub_id or hub, epoch, number
        before = {**view.stale, **view.records}
        view.records, view.stale = {}, {}
        gone: dict[str, str] = {}
        for record in records:
            self._claim(view, record, now, gone)
        missing = {key: record for key, record in before.items() if key not in view.records}
        if learning:
            # The hub has only just started: instances that it does not list may be about to register again.
            view.stale = missing
        else:
            self._contradict(missing, gone)
        return self._settle({**before, **view.records}, view, gone)

    def change(
        self,
        hub: str,
        number: int,
        records: Iterable[Instance],
        gone: Iterable[tuple[str, int, str]] = (),
        now: float = 0.0,
    ) -> Change | None:
        """Apply a hub's change: `gone` as (id, epoch, reason), then `records` that are new or changed.

        Returns:
            None when the number is not the one after the last: request a new snapshot from the hub. Its claims stay
            until the snapshot arrives.

        Raises:
            ProtocolViolation: the hub has sent no snapshot since it was lost.
        """
        view = self._views.setdefault(hub, View())
        view.enter(CHANGE, now)
        if not self._in_order(view, number, now):
            return None
        reasons: dict[str, str] = {}
        touched: dict[str, None] = {}
        for instance_id, epoch, reason in gone:
            touched[instance_id] = None
            reasons[instance_id] = reason
            if reason == LEFT:
                self._end(instance_id, epoch + 1, now)
            else:
                view.withdraw(instance_id, epoch)
                for other in self._views.values():
                    other.withdraw(instance_id, epoch, stale_only=True)
        for record in records:
            touched[record.id] = None
            self._claim(view, record, now, reasons)
        return self._settle(touched, view, reasons)

    def learned(self, hub: str, number: int, now: float = 0.0) -> Change | None:
        """A hub has learned: instances that it does not list are not registered with it. Returns None as `change`."""
        view = self._views.setdefault(hub, View())
        view.enter(LEARN, now)
        if not self._in_order(view, number, now):
            return None
        missing, view.stale = view.stale, {}
        gone: dict[str, str] = {}
        self._contradict(missing, gone)
        return self._settle(missing, view, gone)

    def loads(self, hub: str, loads: Iterable[tuple[str, float]], now: float = 0.0) -> Change:
        """Apply the loads of instances that the hub lists; others are ignored."""
        view = self._views.setdefault(hub, View())
        view.enter(LOADS, now)
        updated: list[Instance] = []
        for instance_id, load in loads:
            if instance_id not in view.records:
                continue
            # The claim and the current record have the same epoch (see `_claim`); only the load is replaced.
            record = self._current[instance_id]
            if record.load != load:
                record = msgspec.structs.replace(record, load=load)
                self._index(record)
                updated.append(record)
            view.records[instance_id] = record
        return Change(updated=tuple(updated), only_loads=True) if updated else NOTHING

    def hub_lost(self, hub: str, now: float = 0.0) -> Change:
        """The connection to a hub was lost. Its claims are kept as stale ones, so the change is empty."""
        view = self._views.setdefault(hub, View())
        view.enter(LOSE, now)
        view.stale.update(view.records)
        view.records = {}
        return NOTHING

    def forget(self, now: float) -> Change:
        """Withdraw the stale claims of lost hubs that no hub has confirmed for `grace_s`. Call about once a second."""
        for instance_id in [key for key, (_, at) in self._floors.items() if now - at > FLOOR_GRACES * self.grace_s]:
            del self._floors[instance_id]
        learned_since = min((view.changed_at for view in self._views.values() if view.state == LEARNED), default=None)
        if learned_since is None:
            return NOTHING
        gone: dict[str, str] = {}
        for view in self._views.values():
            if view.stale and view.state == ABSENT and now - max(learned_since, view.changed_at) >= self.grace_s:
                for instance_id in view.stale:
                    gone[instance_id] = UNLISTED
                view.stale = {}
        return self._settle(gone, None, gone)

    # --- claims -----------------------------------------------------------------------------------

    def _in_order(self, view: View, number: int, now: float) -> bool:
        if view.state == GAPPED:
            return False
        if number != view.number + 1:
            view.enter(GAP, now)
            return False
        view.number = number
        return True

    def _claim(self, view: View, record: Instance, now: float, reasons: dict[str, str]) -> None:
        instance_id = record.id
        floor = self._floors.get(instance_id)
        if floor is not None and record.epoch < floor[0]:
            return
        current = view.records.get(instance_id) or self._current.get(instance_id)
        if current is not None and current.epoch != record.epoch:
            if record.epoch < current.epoch:
                return
            self._end(instance_id, record.epoch, now)
            reasons[instance_id] = SUPERSEDED
        elif current is not None and current == record:
            # Several hubs send equal records: keep one object.
            record = current
        view.records[instance_id] = record
        view.stale.pop(instance_id, None)

    def _end(self, instance_id: str, floor: int, now: float) -> None:
        """Withdraw every claim to an id with an epoch below `floor`, and accept no such claim again."""
        self._floors[instance_id] = (max(floor, self._floors.get(instance_id, (0, 0.0))[0]), now)
        for view in self._views.values():
            view.withdraw(instance_id, floor - 1)

    def _contradict(self, missing: dict[str, Instance], reasons: dict[str, str]) -> None:
        """A hub that has learned no longer lists these instances: withdraw the stale claims of all hubs to them."""
        for instance_id, record in missing.items():
            reasons.setdefault(instance_id, UNLISTED)
            for view in self._views.values():
                view.withdraw(instance_id, record.epoch, stale_only=True)

    # --- from claims to a table ---------------------------------------------------------------------

    def _best(self, instance_id: str, latest: View | None) -> Instance | None:
        """The claim that counts. All claims to an id have the same epoch (see `_claim`). In this order: the claim of
        `latest`, the current record, a claim of a hub that lists it now, a stale claim."""
        if latest is not None and (heard := latest.records.get(instance_id)) is not None:
            return heard
        current = self._current.get(instance_id)
        best: Instance | None = None
        for view in self._views.values():
            listed = view.records.get(instance_id)
            claim = listed or view.stale.get(instance_id)
            if claim is not None and (best is None or claim is current or (listed and best is not current)):
                best = claim
        return best

    def _settle(self, touched: Iterable[str], latest: View | None, reasons: dict[str, str]) -> Change:
        """Update `_current` from the claims to the touched ids, and return the change."""
        joined: list[Instance] = []
        left: list[tuple[Instance, str]] = []
        updated: list[Instance] = []
        for instance_id in touched:
            was = self._current.get(instance_id)
            now_is = self._best(instance_id, latest)
            if was is now_is or was == now_is:
                continue
            if was is not None and now_is is not None and was.epoch == now_is.epoch:
                updated.append(now_is)
            else:
                if was is not None:
                    left.append((was, reasons.get(instance_id, UNLISTED)))
                if now_is is not None:
                    joined.append(now_is)
            if was is not None and (now_is is None or now_is.service != was.service):
                self._unindex(was)
            if now_is is not None:
                self._index(now_is)
        if not (joined or left or updated):
            return NOTHING
        self.version += 1
        return Change(tuple(joined), tuple(left), tuple(updated))

    def _index(self, record: Instance) -> None:
        self._current[record.id] = record
        self._services.setdefault(record.service, {})[record.id] = record
        self._known.add(record.service)
        self._tuples.pop(record.service, None)

    def _unindex(self, record: Instance) -> None:
        self._current.pop(record.id, None)
        of_service = self._services[record.service]
        del of_service[record.id]
        if not of_service:
            del self._services[record.service]
        self._tuples.pop(record.service, None)
