"""Instants here, budgets on the wire."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mesh.protocol.deadline import MAX_BUDGET_MS, from_budget, to_budget

instants = st.floats(0, 1e7)


@given(instants, st.floats(0.0001, 7 * 24 * 3600 - 1))
def test_a_hop_does_not_shorten_a_deadline(now, left):
    """There and back it is at most a millisecond longer, and never shorter."""
    deadline_at = now + left
    again = from_budget(to_budget(deadline_at, now), now)
    assert deadline_at - 1e-6 <= again <= deadline_at + 0.0011


def test_a_deadline_that_is_over_has_no_budget():
    """Zero, not a negative number."""
    assert to_budget(10.0, 10.0) == 0
    assert to_budget(9.0, 10.0) == 0


def test_a_budget_is_at_most_a_week():
    """What is longer was a mistake, and a number on the wire is bounded."""
    assert to_budget(1e12, 0.0) == MAX_BUDGET_MS
    assert from_budget(MAX_BUDGET_MS, 5.0) == 5.0 + 7 * 24 * 3600


def test_an_absurd_budget_is_used_up():
    """Negative or beyond the limit: what a broken peer sent gives nobody time without end."""
    for budget in (-1, MAX_BUDGET_MS + 1, 2**63, -(2**63)):
        assert from_budget(budget, 5.0) == 5.0
