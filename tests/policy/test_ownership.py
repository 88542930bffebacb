"""Rendezvous hashing: one owner, little movement, and shares that add up."""

from __future__ import annotations

from collections import Counter

import pytest

from mesh.policy.ownership import MOST_NAMES, Owners

NAMES = [f"address 192.0.2.{number}" for number in range(3000)]


def owners(*members: str, me: str = "a") -> Owners:
    found = Owners(me)
    found.change(members)
    return found


def test_alone_everything_is_mine():
    assert {Owners("a").of(name) for name in NAMES} == {"a"}


def test_all_processes_find_the_same_owner_whatever_the_order_of_the_members():
    one, other = owners("a", "b", "c"), owners("c", "a", "b", me="b")
    assert [one.of(name) for name in NAMES] == [other.of(name) for name in NAMES]


def test_names_are_spread_evenly():
    counts = Counter(owners("a", "b", "c").of(name) for name in NAMES)
    assert all(900 <= counts[member] <= 1100 for member in "abc")


def test_only_the_names_of_a_member_that_goes_move():
    before, after = owners("a", "b", "c"), owners("a", "b")
    moved = [name for name in NAMES if before.of(name) != after.of(name)]
    assert moved == [name for name in NAMES if before.of(name) == "c"]


@pytest.mark.parametrize("whole", [0, 1, 2, 3, 10, 100, 101])
def test_shares_add_up(whole: int):
    for name in NAMES[:50]:
        assert sum(owners("a", "b", "c", me=me).share(name, whole) for me in "abc") == whole
    # A process that is not listed yet takes nothing from the others but its own part.
    assert owners("b", "c", me="a").share(NAMES[0], 99) == 33


def test_the_memory_of_names_is_bounded():
    found = owners("a", "b")
    for number in range(MOST_NAMES * 2 + 10):
        found.of(str(number))
    assert len(found._known) <= MOST_NAMES
