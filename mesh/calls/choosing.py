"""Chooses the instance for the next attempt of a call.

Owns: the choice among the callable instances: by key, by id, or the better of two; and the fallback to other hosts when
the instances on this host are busy.
Leaves to others: the cost of a call at an instance (policy.balance), which instances are callable (pool), which release
gets the call while a canary runs (cohorts), waiting when there is none (client).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from mesh.calls.cohorts import Cohort
from mesh.calls.pool import Group, Handle
from mesh.calls.request import Order
from mesh.policy.balance import rendezvous
from mesh.policy.balance_near import has_place


def choose(order: Order, ready: Sequence[Handle], now: float, random: Callable[[], float]) -> Handle | None:
    """The instance for the next attempt; None when none can be called now.

    Without a key: the better of two instances drawn at random, by calls in flight times latency. This is the rule of
    policy.balance.pick_two, inlined because it runs for every call.
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
    # An instance without a measured latency gets that of the other one: the calls in flight decide.
    latency_of_one = one.latency.value(now) if one.latency.observed else two.latency.value(now)
    latency_of_two = two.latency.value(now) if two.latency.observed else latency_of_one
    if (one.in_flight + 1) * latency_of_one <= (two.in_flight + 1) * latency_of_two:
        return one
    return two


def choose_beyond(order: Order, now: float, random: Callable[[], float]) -> Handle | None:
    """The second choice, when `choose` found no instance with a free place among the preferred ones (`group.first`).

    In this order: a preferred instance with a free place, any instance with a free place, any instance. While a
    canary runs, the release is decided first; then this applies to its instances.
    """
    group: Group = order.route.group
    if order.instance is not None:
        return choose(order, group.ready, now, random)
    if group.split is not None:
        for cohort in group.split.cohorts(order, random):
            handle = _choose_of(order, cohort, now, random)
            if handle is not None or (order.key is not None and cohort.dialling):
                return handle
        return None
    if order.key is not None:
        return choose(order, group.ready, now, random)
    return _spread(order, group.first, group.ready, now, random)


def _choose_of(order: Order, cohort: Cohort[Handle], now: float, random: Callable[[], float]) -> Handle | None:
    """An instance of one release."""
    if order.key is not None:
        return _first_of(order, order.key, cohort.handles)
    handle = choose(order, cohort.first, now, random)
    if cohort.first is not cohort.ready and (handle is None or handle.in_flight >= handle.places):
        return _spread(order, cohort.first, cohort.ready, now, random)
    return handle


def _spread(
    order: Order, first: Sequence[Handle], ready: Sequence[Handle], now: float, random: Callable[[], float]
) -> Handle | None:
    for handles in (first, ready):
        free = [one for one in handles if has_place(one.in_flight, one.places) and one.peer.credit_left > 0]
        handle = choose(order, free, now, random)
        if handle is not None:
            return handle
    return choose(order, ready, now, random)


def choose_with_credit(order: Order, now: float, random: Callable[[], float]) -> Handle | None:
    """Choose again among instances with link credit left, when the first choice had none.

    None when there is no such instance, or when the call names one instance.
    """
    if order.instance is not None:
        return None
    group: Group = order.route.group
    # While a canary runs, only the regular one takes what exceeds the links.
    ready = group.ready if group.split is None else group.split.old.ready
    spare = [handle for handle in ready if handle.peer.credit_left > 0 and not was_tried(order, handle)]
    if order.key is None:
        return choose(order, spare, now, random)
    by_id = {handle.instance.id: handle for handle in spare}
    return next((by_id[one] for one in rendezvous(order.key, by_id)), None)


def was_tried(order: Order, handle: Handle) -> bool:
    """Whether this instance refused or lost the call on its current connection."""
    return order.tried is not None and order.tried.get(handle.instance.id) == handle.peer.connections


def _preferred(order: Order, key: str) -> Handle | None:
    """The instance that a key prefers among all that discovery lists, so that every caller finds the same one.

    None while that instance is being dialled: the call waits for it. Unreachable instances are skipped.
    """
    group: Group = order.route.group
    if not group.whole or group.split is not None:
        return None  # `choose_beyond` decides
    return _first_of(order, key, group.handles)


def _first_of(order: Order, key: str, handles: Mapping[str, Handle]) -> Handle | None:
    for instance in rendezvous(key, handles):
        handle = handles[instance]
        if was_tried(order, handle):
            continue
        if handle.peer.open:
            return handle
        if handle.peer.dialling:
            return None
    return None
