"""A client's view of one hub: the instances that the hub lists.

Owns: the state of the view, and the hub's claims: current ones and stale ones.
Leaves to others: merging the views of several hubs (table).
"""

from __future__ import annotations

from typing import Final

from mesh.discovery.record import Instance
from mesh.errors import ProtocolViolation

# --- states -------------------------------------------------------------------------------------
ABSENT: Final = "absent"  # no connection, or no snapshot on this one: all claims are from earlier connections
LEARNING: Final = "learning"  # the hub started recently: running instances may not have registered yet
LEARNED: Final = "learned"  # the list is complete: an instance that is not listed is not registered with the hub
GAPPED: Final = "gapped"  # a change was missed; a new snapshot has been requested

# --- events -------------------------------------------------------------------------------------
FIRST_WORDS: Final = "a snapshot of a learning hub"
ALL_WORDS: Final = "a snapshot"
CHANGE: Final = "a change"
LEARN: Final = "learned"
LOADS: Final = "loads"
GAP: Final = "a gap in the numbers"
LOSE: Final = "the loss of the hub"

#: (state, event) -> state. A missing pair is a violation: a hub sends changes only after its snapshot.
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
    (LEARNED, LEARN): LEARNED,  # a hub that was blocked for a while learns again
    (LEARNED, LOADS): LEARNED,
    (LEARNED, GAP): GAPPED,
    (LEARNED, LOSE): ABSENT,
    (GAPPED, FIRST_WORDS): LEARNING,
    (GAPPED, ALL_WORDS): LEARNED,
    (GAPPED, CHANGE): GAPPED,
    (GAPPED, LEARN): GAPPED,
    (GAPPED, LOADS): GAPPED,  # loads have no numbers, and the listed claims stay valid
    (GAPPED, GAP): GAPPED,
    (GAPPED, LOSE): ABSENT,
}


class View:
    """One hub's claims.

    Attributes:
        records: the instances that the hub lists now, by id. Each is a claim that the instance is running.
        stale: the instances that the hub listed before it was lost, restarted or missed a change, and has neither
            listed again nor declared gone since. These are claims too, but any contradiction ends them.
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
        """Change the state by `VIEW`.

        Raises:
            ProtocolViolation: the hub may not send this now.
        """
        after = VIEW.get((self.state, event))
        if after is None:
            raise ProtocolViolation(f"the hub sent {event} before a snapshot")
        if after != self.state:
            self.state = after
            self.changed_at = now

    def claim(self, instance_id: str) -> Instance | None:
        """This hub's claim to an id, the current one before the stale one; None when it has none."""
        return self.records.get(instance_id) or self.stale.get(instance_id)

    def withdraw(self, instance_id: str, epoch: int, *, stale_only: bool = False) -> None:
        """Remove the claims to an id with an epoch up to `epoch`."""
        for claims in (self.stale,) if stale_only else (self.stale, self.records):
            record = claims.get(instance_id)
            if record is not None and record.epoch <= epoch:
                del claims[instance_id]
