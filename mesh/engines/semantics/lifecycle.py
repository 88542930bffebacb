"""The lifecycle of a job, as one table. Pure.

Owns: the transitions, and the same table as pairs of statuses for engines that store a transition in one step.
Leaves to others: when an event happens (engines), how statuses are stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

from mesh.tasks.contract import Status, Verdict

#: begin: it waits for no other job any more · due: its due time has come · lease: leased to a worker · done · again: it
#: must run once more (retry, release, the death of its worker) · bury: it becomes a dead letter · cancel · requeue: it,
#: or a job that it waits for, is requeued.
Event = Literal["begin", "due", "lease", "done", "again", "bury", "cancel", "requeue"]

#: (status, event) -> status; a missing key is an error of the engine. A job that is to run is `delayed` first, and
#: becomes ready in the same step when it is due at once.
LIFECYCLE: Final[Mapping[tuple[Status, Event], Status]] = {
    ("waiting", "begin"): "delayed",
    ("waiting", "bury"): "dead",
    ("waiting", "cancel"): "cancelled",
    ("delayed", "due"): "ready",
    ("delayed", "cancel"): "cancelled",
    ("ready", "lease"): "running",
    ("ready", "bury"): "dead",
    ("ready", "cancel"): "cancelled",
    ("running", "done"): "done",
    ("running", "again"): "delayed",
    ("running", "bury"): "dead",
    ("running", "cancel"): "cancelled",
    ("dead", "requeue"): "waiting",
}

#: The event that a verdict causes; a job that was asked to stop is cancelled instead of running again.
EVENT_OF: Final[Mapping[Verdict, Event]] = {
    "done": "done",
    "retry": "again",
    "release": "again",
    "dead": "bury",
    "cancelled": "cancel",
}

#: What follows in the same step when nothing delays it: a status -> the event that leaves it.
_AT_ONCE: Final[Mapping[Status, Event]] = {"waiting": "begin", "delayed": "due"}


def steps() -> dict[tuple[Status, Status], Event]:
    """The table as (from, to) -> event, with the steps that pass through `waiting` or `delayed` without a stop.

    A requeued job is due at once, so it is never delayed by its requeue.
    """
    found: dict[tuple[Status, Status], Event] = {}
    for (before, event), after in LIFECYCLE.items():
        found[before, after] = event
        while after in _AT_ONCE and event != "due":
            after = LIFECYCLE[after, _AT_ONCE[after]]
            if not (event == "requeue" and after == "delayed"):
                found[before, after] = event
    return found
