"""The two releases of a service while a canary runs: which of them gets a call.

Owns: grouping the instances of a service by release, the draw between the releases, and which calls are mirrored.
Leaves to others: choosing an instance of a release (choosing), the share itself (discovery.share), mirroring
(mirroring).

Services without a canary have no Split, and their calls never come here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Generic, Protocol, TypeVar

from mesh.calls.propagation import PRINCIPAL
from mesh.calls.request import Order
from mesh.discovery.record import Instance
from mesh.discovery.share import NONE, Share
from mesh.policy.balance import place_of

#: Methods to remember the decision about mirroring of; names may come from callers.
MOST_KNOWN: Final = 1000


class Member(Protocol):
    """The parts of pool.Handle that are needed here."""

    instance: Instance
    peer: Any
    share: Share | None


H = TypeVar("H", bound=Member)


class Cohort(Generic[H]):
    """The instances of one release.

    Attributes:
        handles: all of them, by id.
        ready, first: as of a Group.
    """

    __slots__ = ("first", "handles", "ready")

    def __init__(self, handles: Mapping[str, H], prefer: Callable[[Sequence[H]], Sequence[H]] | None) -> None:
        self.handles = handles
        self.ready: Sequence[H] = [handle for handle in handles.values() if handle.peer.open]
        self.first = prefer(self.ready) if prefer is not None else self.ready

    @property
    def dialling(self) -> bool:
        """Whether a first connection to some instance is still under way."""
        return any(handle.peer.dialling for handle in self.handles.values())


class Split(Generic[H]):
    """The regular and the new release of one service.

    Attributes:
        old, new: their instances. Canaries with a share of 0 are in neither.
        canaries: all canaries; mirrored calls go to them, whatever their share.
        share: the share of the new release; when several canary rolls run at once, the largest.
    """

    __slots__ = ("_mirrored", "_salt", "canaries", "new", "old", "share")

    def __init__(
        self,
        service: str,
        handles: Iterable[H],
        prefer: Callable[[Sequence[H]], Sequence[H]] | None,
    ) -> None:
        old: dict[str, H] = {}
        new: dict[str, H] = {}
        canaries: dict[str, H] = {}
        self.share: Share = NONE
        for handle in handles:
            one = handle.share
            if one is None:
                old[handle.instance.id] = handle
                continue
            canaries[handle.instance.id] = handle
            if one.share > 0:
                new[handle.instance.id] = handle
            self.share = max(self.share, one)
        self.old = Cohort(old, prefer)
        self.new = Cohort(new, prefer)
        self.canaries = Cohort(canaries, prefer)
        self._salt = f"{service} {self.share.canary}"
        self._mirrored: dict[str, bool] = {}

    def cohorts(self, order: Order, random: Callable[[], float]) -> tuple[Cohort[H], ...]:
        """The releases for this call, the preferred one first. The second one is for when no instance of the first can
        be called.

        Calls with the same key stay on one release, and so do the calls on behalf of one principal. A call that an
        instance has refused or lost is repeated at the regular release.
        """
        share = self.share.share
        if share <= 0.0:
            return (self.old,)
        if order.tried is None:
            key = order.key
            if key is None and order.meta is not None:
                key = order.meta.get(PRINCIPAL)
            if (place_of(self._salt, key) if key else random()) < share:
                return (self.new, self.old)
        return (self.old, self.new)

    def mirrors(self, order: Order, handle: H | None, random: Callable[[], float]) -> bool:
        """Whether a copy of this call, which `handle` gets, is sent to a canary as well."""
        share = self.share.mirror
        return (
            share > 0.0
            and handle is not None
            and handle.share is None
            and order.instance is None
            and not order.attempts
            and bool(self.canaries.ready)
            and self._may_mirror(order.route.method)
            and random() < share
        )

    def _may_mirror(self, method: str) -> bool:
        """Whether a method may be mirrored: it was named for it, or only reads: it may be repeated, and no HTTP route
        but GET leads to it."""
        known = self._mirrored.get(method)
        if known is None:
            known = method in self.share.methods or (
                bool(self.canaries.handles)
                and all(
                    _only_reads(handle, method)
                    for handle in (*self.old.handles.values(), *self.canaries.handles.values())
                )
            )
            if len(self._mirrored) < MOST_KNOWN:
                self._mirrored[method] = known
        return known


def _only_reads(handle: Member, method: str) -> bool:
    record = handle.instance.methods.get(method)
    if record is None or not record.idempotent or record.stream:
        return False
    return all(route.verb == "GET" for route in handle.instance.routes if route.method == method)
