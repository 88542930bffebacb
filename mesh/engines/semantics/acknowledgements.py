"""Acknowledgements that are late or repeated, and what follows from each. Pure.

Owns: the error of a stale acknowledgement, the due time of the next attempt, and when a lost job is given up.
Leaves to others: finding the job and its last acknowledgement (engines), the wait between attempts, which the worker
computes (mesh.policy.backoff) and sends as `delay_s`.
"""

from __future__ import annotations

from typing import Final

from mesh.errors import LeaseLost
from mesh.tasks.contract import Settlement

#: How long an engine remembers the unit, or the acknowledgement of a job that is not kept, in seconds: a repetition
#: within this time is recognized (engines.contract.Unit).
REMEMBERED_S: Final = 600.0


def stale(each: Settlement, why: str) -> LeaseLost:
    """The error of an acknowledgement that is not of the current attempt."""
    return LeaseLost(
        f"attempt {each.attempt} of job {each.id} is no longer leased to this worker: {why}",
        details={"job": each.id, "attempt": each.attempt},
    )


def due_at(due_at: float, delay_s: float, wall: float, ahead: float = 0.0) -> float:
    """When a job is due, by the engine's own clock, from an instant of the wall clock or a delay; 0 for at once.

    Args:
        due_at, delay_s: as in NewTask and Settlement; a delay replaces the instant.
        wall: now, by the engine's own clock.
        ahead: how far the wall clock is ahead of the engine's own.
    """
    if delay_s:
        return wall + delay_s
    return due_at - ahead if due_at else 0.0


def given_up(lost: int, most_lost: int) -> str:
    """The error of a job that lost so many workers, when it is one too many; "" when it may run again."""
    return f"{lost} workers ended while running it" if lost >= most_lost else ""
