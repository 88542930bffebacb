"""What one hub has said, as one client knows it.

Owns: the state of a client's knowledge of one hub, and its claims: fresh ones and stale ones.
Leaves to others: weighing several hubs against each other (table).
"""

from __future__ import annotations

from typing import Final

from mesh.discovery.record import Instance
from mesh.errors import ProtocolViolation

# --- states -------------------------------------------------------------------------------------
ABSENT: Final = "absent"  # no connection, or no snapshot in this one: what is known is from before
LEARNING: Final = "learning"  # it started lately: what it lists lives, what it does not list may live as well
LEARNED: Final = "learned"  # what it does not list is not registered with it
GAPPED: Final = "gapped"  # a change was missed: a new snapshot has been asked for

# --- what happens -------------------------------------------------------------------------------
FIRST_WORDS: Final = "a snapshot of a learning hub"
ALL_WORDS: Final = "a snapshot"
CHANGE: Final = "a change"
LEARN: Final = "learned"
LOADS: Final = "loads"
GAP: Final = "a gap in the numbers"
LOSE: Final = "the loss of the hub"

#: A missing pair is a violation: a hub speaks of changes only after its snapshot.
VIEW: Final[dict[tuple[str, str], str]] = {
    (ABSENT, FIRST_WORDS): LEARNING,
    (ABSENT, ALL_WORDS): LEARNED,
    (ABSENT, LOSE): ABSENT,
    (LEARNING, FIRST_WORDS): LEARNING,
    (LEARNING, ALL_WORDS): LEARNED,
    (LEARNING, CHANGE): LEARNING,
    (LEARNING, LEARN): LEARNED,
    (LEARNING, LOADS): LEARNING,
    (LEARNING, GAP): GAPPED,
    (LEARNING, LOSE): ABSENT,
    (LEARNED, FIRST_WORDS): LEARNING,
    (LEARNED, ALL_WORDS): LEARNED,
    (LEARNED, CHANGE): LEARNED,
    (LEARNED, LEARN): LEARNED,  # a hub that was deaf for a while learns again, and says so again
    (LEARNED, LOADS): LEARNED,
    (LEARNED, GAP): GAPPED,
    (LEARNED, LOSE): ABSENT,
    (GAPPED, FIRST_WORDS): LEARNING,
    (GAPPED, ALL_WORDS): LEARNED,
    (GAPPED, CHANGE): GAPPED,
    (GAPPED, LEARN): GAPPED,
    (GAPPED, LOADS): GAPPED,  # they have no numbers, and what is listed stands
    (GAPPED, GAP): GAPPED,
    (GAPPED, LOSE): ABSENT,
}


class View:
    """One hub's claims.

    Attributes:
        records: what the hub lists now, by id. Each is a claim that the instance lives.
        stale: what it listed before it was lost, restarted or was misunderstood, and has neither repeated nor
            denied since. A claim too, but one that any contradiction ends.
        changed_at: when `state` last changed.
    """

    __slots__ = ("changed_at", "epoch", "hub_id", "number", "records", "stale", "state")

    def __init__(self) -> None:
        self.state = ABSENT
        self.changed_at = 0.0
        self.hub_id = ""
        self.epoch = 0
        self.number = 0
        self.records: dict[str, Instance] = {}
        self.stale: dict[str, Instance] = {}

    def enter(self, event: str, now: float) -> None:
        """Follow the table.

        Raises:
            ProtocolViolation: the hub may not say this now.
        """
        after = VIEW.get((self.state, event))
        if after is None:
            raise ProtocolViolation(f"the hub sent {event} before a snapshot")
        if after != self.state:
            self.state = after
            self.changed_at = now

    def claim(self, instance_id: str) -> Instance | None:
        """What this hub says of an id; its later word before its earlier one."""
        return self.records.get(instance_id) or self.stale.get(instance_id)

    def withdraw(self, instance_id: str, epoch: int, *, stale_only: bool = False) -> None:
        """Forget the claims to an id that are not later than `epoch`."""
        for claims in (self.stale,) if stale_only else (self.stale, self.records):
            record = claims.get(instance_id)
            if record is not None and record.epoch <= epoch:
                del claims[instance_id]
