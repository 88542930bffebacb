"""Which instance takes the next attempt of a call.

Owns: the choice among those that can be called now: by key, by name, or the better of two; and whom to ask when those
on the own host are not enough.
Leaves to others: what a call costs where (policy.balance), who can be called (pool), what to do without one (client).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mesh.calls.pool import Group, Handle
from mesh.calls.request import Order
from mesh.policy.balance import rendezvous
from mesh.policy.balance_near import has_place


def choose(order: Order, ready: Sequence[Handle], now: float, random: Callable[[], float]) -> Handle | None:
    """The instance for the next attempt; None when none can be called now.

    Without a key: the better of two drawn at random, by what is in flight times how long an answer takes there. The
    rule of policy.balance.pick_two, written out, because it runs for every call.
    """
    if order.instance is not None:
        return next((handle for handle in ready if handle.instance.id == order.instance), None)
    if order.key is not None:
        return _preferred(order, order.key)
    if order.tried:
        ready = [handle for handle in ready if not was_tried(order, handle)]
    count = len(ready)
    if count < 2:
        return ready[0] if count else None
    drawn = int(random() * (count * (count - 1)))
    first = drawn // (count - 1)
    second = drawn - first * (count - 1)
    one = ready[first]
    two = ready[second + 1 if second >= first else second]
    # A newcomer is taken to be as fast as the one it is compared with: what is in flight decides.
    latency_of_one = one.latency.value(now) if one.latency.observed else two.latency.value(now)
    latency_of_two = two.latency.value(now) if two.latency.observed else latency_of_one
    if (one.in_flight + 1) * latency_of_one <= (two.in_flight + 1) * latency_of_two:
        return one
    return two


def choose_beyond(order: Order, now: float, random: Callable[[], float]) -> Handle | None:
    """After the first choice among those on the own host was none, or one that has no place left: another of them, one
    of another host, and when nobody has a place left, anybody."""
    group: Group = order.route.group
    if order.instance is None and order.key is None:
        for handles in (group.first, group.ready):
            free = [one for one in handles if has_place(one.in_flight, one.places) and one.peer.credit_left > 0]
            handle = choose(order, free, now, random)
            if handle is not None:
                return handle
    return choose(order, group.ready, now, random)


def choose_with_credit(order: Order, now: float, random: Callable[[], float]) -> Handle | None:
    """The same among those whose links are not full, after the first choice was; None when one in particular was."""
    if order.instance is not None:
        return None
    group: Group = order.route.group
    spare = [handle for handle in group.ready if handle.peer.credit_left > 0 and not was_tried(order, handle)]
    if order.key is None:
        return choose(order, spare, now, random)
    by_id = {handle.instance.id: handle for handle in spare}
    return next((by_id[one] for one in rendezvous(order.key, by_id)), None)


def was_tried(order: Order, handle: Handle) -> bool:
    """Whether this instance refused or lost the call, on the connection that it has now."""
    return order.tried is not None and order.tried.get(handle.instance.id) == handle.peer.connections


def _preferred(order: Order, key: str) -> Handle | None:
    """The instance that a key prefers, of all that discovery lists, so that every caller finds the same one.

    None while that one is being dialled: the call waits for it. One that cannot be reached is passed over.
    """
    group: Group = order.route.group
    if not group.whole:
        return None
    for instance in rendezvous(key, group.handles):
        handle = group.handles[instance]
        if was_tried(order, handle):
            continue
        if handle.peer.open:
            return handle
        if handle.peer.dialling:
            return None
    return None
