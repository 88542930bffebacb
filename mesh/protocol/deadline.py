"""A deadline: an instant here, a budget on the wire.

Owns: turning one into the other.
Leaves to others: watching for the instant (calls.expiry), what a nested call has left (calls.client).
"""

from __future__ import annotations

from typing import Final

#: A budget travels in whole milliseconds; what is longer than a week was a mistake.
MAX_BUDGET_MS: Final = 7 * 24 * 3600 * 1000


def to_budget(deadline_at: float, now: float) -> int:
    """Milliseconds that are left, rounded up so that a hop never shortens a deadline by rounding; at least 0."""
    left = deadline_at - now
    if left <= 0:
        return 0
    return min(int(left * 1000) + 1, MAX_BUDGET_MS)


def from_budget(budget_ms: int, now: float) -> float:
    """The instant at which a budget that came just now is used up; now for one that is no budget."""
    return now + budget_ms * 0.001 if 0 <= budget_ms <= MAX_BUDGET_MS else now
