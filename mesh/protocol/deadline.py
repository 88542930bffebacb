"""Deadlines: an instant within a process, a time budget on the wire.

Owns: converting one into the other.
Leaves to others: watching deadlines (calls.expiry), the deadline of a nested call (calls.client).
"""

from __future__ import annotations

from typing import Final

#: A budget is sent in whole milliseconds; one longer than a week is taken for an error.
MAX_BUDGET_MS: Final = 7 * 24 * 3600 * 1000


def to_budget(deadline_at: float, now: float) -> int:
    """The remaining milliseconds, rounded up so that a hop never shortens a deadline by rounding; at least 0."""
    left = deadline_at - now
    if left <= 0:
        return 0
    return min(int(left * 1000) + 1, MAX_BUDGET_MS)


def from_budget(budget_ms: int, now: float) -> float:
    """The instant at which a budget received now is used up; `now` for an invalid budget."""
    return now + budget_ms * 0.001 if 0 <= budget_ms <= MAX_BUDGET_MS else now
