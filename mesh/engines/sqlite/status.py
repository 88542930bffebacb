"""The statuses of a job as stored in the file, and their transitions.

Owns: the numbers, their names for people, and the order within a status.
Leaves to others: the legal transitions (semantics.lifecycle), making one (deferring, leasing, settling, ending, burial,
sweep).
"""

from __future__ import annotations

from typing import Final

from mesh.engines.semantics import suspects
from mesh.engines.semantics.acknowledgements import REMEMBERED_S
from mesh.engines.semantics.lifecycle import steps
from mesh.engines.semantics.suspects import SUSPECT_LOST as SUSPECT_LOST
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

#: (from, to) → event; a missing pair is a bug of this engine. A row that has been kept for its time, or is not kept, is
#: forgotten.
MOVES: Final[dict[tuple[int, int], str]] = {
    **{(CODES[before], CODES[after]): event for (before, after), event in steps().items()},
    **{
        (CODES[before], FORGOTTEN): event
        for (before, after), event in steps().items()
        if after in ("done", "cancelled")
    },
    (DEAD, FORGOTTEN): "drop",
    (DONE, FORGOTTEN): "time is over",
    (CANCELLED, FORGOTTEN): "time is over",
}

VERDICTS: Final[dict[Verdict, int]] = {"done": 1, "retry": 2, "dead": 3, "release": 4, "cancelled": 5}

#: Suspects sort after every rank, so that one index range contains exactly them.
SUSPECT_SORT: Final = 100

#: Bits of `extra`.
BODY: Final = 1
RESULT: Final = 2
FAILURE: Final = 4
PRIORS: Final = 8

#: How long the rows of a unit are kept as a proof that it was committed: the ten minutes that engines.contract.Unit
#: promises, and one more.
PROOF_S: Final = REMEMBERED_S + 60.0


def rank(priority: int, lost: int) -> int:
    """The sort number of a ready job."""
    return suspects.rank(priority) + (SUSPECT_SORT if lost >= SUSPECT_LOST else 0)
