"""A queue that tenants share: turns, room for the tenant with fewer items, and plain order without tenants."""

from __future__ import annotations

import random

import pytest

from mesh.policy.fair_queue import FairQueue
from mesh.policy.limits import REFUSE, RUN, WAIT, Gate


def filled(*items: tuple[str, str]) -> FairQueue[str]:
    queue: FairQueue[str] = FairQueue()
    for item, tenant in items:
        queue.push(item, tenant)
    return queue


def drained(queue: FairQueue[str]) -> list[str]:
    return [queue.pop() for _ in range(len(queue))]


def test_without_tenants_items_leave_in_order_of_arrival():
    assert drained(filled(*((str(number), "") for number in range(5)))) == list("01234")


def test_tenants_take_turns_and_each_keeps_its_order():
    queue = filled(("a1", "a"), ("a2", "a"), ("a3", "a"), ("b1", "b"), ("none", ""), ("b2", "b"))
    assert drained(queue) == ["a1", "b1", "none", "a2", "b2", "a3"]


def test_a_tenant_that_comes_back_waits_for_its_turn():
    queue = filled(("a1", "a"), ("b1", "b"), ("b2", "b"))
    assert queue.pop() == "a1"
    queue.push("a2", "a")
    assert drained(queue) == ["b1", "a2", "b2"]


def test_items_can_be_removed_from_anywhere():
    queue = filled(("a1", "a"), ("a2", "a"), ("b1", "b"))
    assert (queue.remove("a1"), queue.remove("b1"), queue.remove("b1"), len(queue)) == (True, True, False, 1)
    assert drained(queue) == ["a2"]
    assert queue.clear() == []


def test_all_items_leave_in_order_of_arrival_when_the_queue_is_cleared():
    assert filled(("a1", "a"), ("b1", "b"), ("a2", "a")).clear() == ["a1", "b1", "a2"]


@pytest.mark.parametrize(
    ("waiting", "tenant", "gives_way"),
    [
        ("aaaa", "b", "a4"),
        ("aaaa", "", "a4"),
        ("aaaa", "a", None),
        ("aaab", "b", "a3"),
        ("aabb", "c", "a2"),
        # Afterwards the other tenant would have fewer than this one: an exchange would gain nothing.
        ("aaabb", "b", None),
        ("ab", "c", None),
        ("a", "b", None),
        ("", "b", None),
    ],
)
def test_the_newest_item_of_the_tenant_with_the_most_gives_way(waiting: str, tenant: str, gives_way: str | None):
    counts: dict[str, int] = {}
    queue: FairQueue[str] = FairQueue()
    for each in waiting:
        counts[each] = counts.get(each, 0) + 1
        queue.push(f"{each}{counts[each]}", each)
    assert queue.displaceable(tenant) == gives_way


def test_a_full_gate_makes_room_for_a_tenant_with_fewer():
    gate: Gate[str] = Gate(1, 3)
    assert gate.admit("a0", "a") is RUN
    assert [gate.admit(f"a{number}", "a") for number in (1, 2, 3)] == [WAIT] * 3
    assert (gate.admit("b1", "b"), gate.displace("b")) == (REFUSE, "a3")
    assert gate.admit("b1", "b") is WAIT
    assert (gate.admit("a4", "a"), gate.displace("a")) == (REFUSE, None)
    assert [gate.release() for _ in range(4)] == ["a1", "b1", "a2", None]


@pytest.mark.parametrize("seed", range(5))
def test_under_overload_tenants_get_equal_shares(seed: int):
    """Three tenants with very different loads: each gets a third of what is served, or all that it asks for."""
    rng = random.Random(seed)
    gate: Gate[tuple[str, int]] = Gate(4, 30)
    served = {"flood": 0, "busy": 0, "modest": 0}
    refused = dict.fromkeys(served, 0)
    asked = {"flood": 50.0, "busy": 5.0, "modest": 0.2}
    made = 0
    for _ in range(3000):
        for tenant, rate in asked.items():
            for _ in range(int(rate) + (rng.random() < rate % 1)):
                made += 1
                item = (tenant, made)
                if gate.admit(item, tenant) is REFUSE:
                    displaced = gate.displace(tenant)
                    refused[displaced[0] if displaced is not None else tenant] += 1
                    if displaced is not None:
                        assert gate.admit(item, tenant) is WAIT
        # One of the running items ends.
        following = gate.release()
        if following is not None:
            served[following[0]] += 1
    assert refused["modest"] == 0
    assert served["modest"] == pytest.approx(3000 * 0.2, rel=0.1)
    assert served["flood"] == pytest.approx(served["busy"], rel=0.05)
