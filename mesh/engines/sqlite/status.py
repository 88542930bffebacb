"""The statuses of a job as stored in the file, and their transitions.

Owns: the numbers, their names for people, the legal transitions, and the order within a status.
Leaves to others: making a transition (deferring, leasing, settling, ending, burial, sweep).
"""

from __future__ import annotations

from typing import Final

from mesh.tasks.contract import Status, Verdict

WAITING: Final = 0
DELAYED: Final = 1
READY: Final = 2
RUNNING: Final = 3
DONE: Final = 4
DEAD: Final = 5
CANCELLED: Final = 6
#: Retention is over, but the row is kept as a proof that the job existed, in case its unit is repeated.
FORGOTTEN: Final = 7

STATUSES: Final = 8
NAMES: Final[tuple[Status, ...]] = ("waiting", "delayed", "ready", "running", "done", "dead", "cancelled")
CODES: Final[dict[Status, int]] = {name: code for code, name in enumerate(NAMES)}

#: (from, to) → cause. A missing pair is a bug of this engine.
MOVES: Final[dict[tuple[int, int], str]] = {
    (WAITING, DELAYED): "fed, or first in its line",
    (WAITING, READY): "fed, or first in its line",
    (WAITING, DEAD): "upstream",
    (WAITING, CANCELLED): "cancel",
    (WAITING, FORGOTTEN): "cancel, not kept",
    (DELAYED, READY): "due",
    (DELAYED, CANCELLED): "cancel",
    (DELAYED, FORGOTTEN): "cancel, not kept",
    (READY, RUNNING): "claim",
    (READY, DEAD): "unknown",
    (READY, CANCELLED): "cancel",
    (READY, FORGOTTEN): "cancel, not kept",
    (RUNNING, DELAYED): "retry",
    (RUNNING, READY): "retry, release, lost",
    (RUNNING, DONE): "done",
    (RUNNING, DEAD): "dead, lost too often",
    (RUNNING, CANCELLED): "cancelled",
    (RUNNING, FORGOTTEN): "done or cancelled, not kept",
    (DEAD, READY): "requeue",
    (DEAD, WAITING): "requeue behind another of its line, or its cause was requeued",
    (DEAD, FORGOTTEN): "drop",
    (DONE, FORGOTTEN): "time is over",
    (CANCELLED, FORGOTTEN): "time is over",
}

VERDICTS: Final[dict[Verdict, int]] = {"done": 1, "retry": 2, "dead": 3, "release": 4, "cancelled": 5}

#: A task that was lost so often may be the one that kills its workers: it runs alone.
SUSPECT_LOST: Final = 2
#: Suspects sort after every rank, so that one index range contains exactly them.
SUSPECT_SORT: Final = 100

#: Bits of `extra`.
BODY: Final = 1
RESULT: Final = 2
FAILURE: Final = 4
PRIORS: Final = 8

#: How long the rows of a unit are kept as a proof that it was committed: the ten minutes that engines.contract.Unit
#: promises, and one more.
PROOF_S: Final = 660.0


def rank(priority: int, lost: int) -> int:
    """The sort number of a ready job."""
    return 9 - priority + (SUSPECT_SORT if lost >= SUSPECT_LOST else 0)
