"""Who comes first: those on the own host, while they are well."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from mesh.policy.balance_near import AT_EASE, BUSY, busy, has_place, prefer


@given(st.lists(st.booleans()))
def test_those_at_hand_come_first_and_all_of_them(near: list[bool]):
    """In their order; everybody when there is nobody at hand, or nobody else."""
    ready = list(enumerate(near))
    chosen = prefer(ready, lambda one: one[1])
    expected = [one for one in ready if one[1]]
    assert list(chosen) == (expected or ready)


@given(st.lists(st.booleans()).filter(lambda near: len(set(near)) < 2))
def test_where_it_makes_no_difference_nothing_is_made(near: list[bool]):
    """The same object: a caller sees by `is` that the rule has nothing to say, which is all that one host pays."""
    assert prefer(near, lambda one: one) is near


def test_an_instance_turns_busy_late_and_is_at_ease_late():
    """What it gives away frees its places at once: without the span between, it would be busy every other second."""
    assert not busy(BUSY - 0.01, was=False)
    assert busy(BUSY, was=False)
    assert busy(AT_EASE, was=True)
    assert not busy(AT_EASE - 0.01, was=True)


def test_it_does_not_flap_under_a_load_that_swings():
    """A load around nine tenths, as hubs tell of it: one turn, and one back when the load is over."""
    rng = random.Random(3)
    loads = [0.9 + rng.uniform(-0.2, 0.1) for _ in range(200)] + [0.5 - rng.uniform(0, 0.2) for _ in range(50)]
    turns, state = 0, False
    for load in loads:
        turns, state = turns + (busy(load, state) != state), busy(load, state)
    assert turns == 2
    assert not state


def test_a_place_is_free_until_all_are_taken():
    """The last one counts."""
    assert has_place(0, 1)
    assert not has_place(1, 1)
