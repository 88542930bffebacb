"""Order of ready jobs, and jobs that may kill their workers. Pure.

Owns: the rank of a ready job, when a job runs alone, and how long a busy worker is kept back for it.
Leaves to others: choosing workers (the store's dispatch, each engine).

Ready jobs run by priority, then by age. A job of two workers that died is a suspect: it runs alone in its worker, so
that the next death is counted against no other job.
"""

from __future__ import annotations

from typing import Final

#: A job that was lost so often is a suspect.
SUSPECT_LOST: Final = 2
#: How long a busy worker is first kept back for a suspect; the pause after it is as long. With an hour's work, a worker
#: should not idle.
KEEP_BACK_S: Final = 10.0


def is_suspect(lost: int) -> bool:
    """Whether a job that was lost so often runs alone."""
    return lost >= SUSPECT_LOST


def rank(priority: int) -> int:
    """The place of a priority in ascending order: 0 for the highest."""
    return 9 - priority
