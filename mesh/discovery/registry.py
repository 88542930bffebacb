"""The registry of one hub: leases, and news about them.

Owns: which instance holds a lease, when it expires, which news watchers get, and in which order.
Leaves to others: connections and encoding of messages (hub), validation of records (admission), time (`now` is
passed in).

All leases of a hub are equally long, so they expire in the order of their renewal: a renewal moves its lease to the
end of one ordered dict, and expiry checks the front. There is no heap and no timer per lease; both operations cost the
same for ten instances and for ten thousand (benchmarks/discovery.py).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from mesh.discovery.admission import Limits, encode_loads, encode_record, encode_records
from mesh.discovery.record import Instance
from mesh.discovery.table import EXPIRED, LEFT
from mesh.errors import Overloaded, ProtocolViolation

# Load is a hint for display and for the first choice of an instance; callers measure the instances that they use. To
# send the load of each renewal would cost instances × watchers numbers every second, outdated on arrival. So a load is
# sent when it has changed by more than 0.1, which also suppresses small oscillations, and without the unchanged record:
# 30 bytes instead of 5 KB.
LOAD_STEP = 0.1

#: Seconds for which loads are collected before they are sent in one message. The first one after a pause waits only
#: for the next tick.
LOADS_S = 1.0

#: Calls of `tick` per lease: an expiry is detected at most a twentieth of a lease late.
TICKS_PER_LEASE = 20

#: Renewals per lease: the lease is kept if four in a row are lost.
RENEWALS_PER_LEASE = 5

# Readers refuse arrays of more than 4,096 elements (protocol.codec), and frames should stay small.
GONE_AT_ONCE = 1000
NO_RECORDS = encode_records(())


class Counts(msgspec.Struct):
    """Counters of a hub since it started, for pages and metrics."""

    registered: int = 0
    renewed: int = 0
    unknown: int = 0
    left: int = 0
    expired: int = 0
    superseded: int = 0
    refused: int = 0
    deaf: int = 0


class News(NamedTuple):
    """One message for every watcher: a change, the end of learning (`learned`), or `loads`, which has no number."""

    number: int
    learned: bool = False
    records: bytes = b""
    gone: list[list[Any]] = []
    loads: bytes = b""


class Lease:
    """The registration of one instance, held by a peer until `expires_at`."""

    __slots__ = ("encoded", "expires_at", "peer", "record", "size")

    def __init__(self, record: Instance, encoded: msgspec.Raw, peer: str, expires_at: float) -> None:
        self.record = record  # its load is the one that was sent last, or will be sent next
        self.encoded: msgspec.Raw | None = encoded  # None: to be encoded again when it is next sent
        self.size = memoryview(encoded).nbytes
        self.peer = peer
        self.expires_at = expires_at


class Registry:
    """The leases of one hub.

    A hub starts with an empty registry: it learns for `learn_s`, and declares no instance gone until then. A hub that
    was blocked learns again for a lease: when `tick` is called more than half a lease after the last call, renewals
    may have waited unread, and their delay is the hub's fault.
    """

    def __init__(
        self, *, now: float, lease_s: float = 5.0, learn_s: float | None = None, limits: Limits | None = None
    ) -> None:
        self.lease_s = lease_s
        self.limits = limits or Limits()
        self.learn_until = now + (lease_s if learn_s is None else learn_s)
        self.learning = True
        #: The number of the last news taken.
        self.number = 0
        self.counts = Counts()
        self._ticked_at = now
        self._bytes = 0
        self._leases: OrderedDict[str, Lease] = OrderedDict()
        self._held: dict[str, int] = {}
        self._changed: dict[str, None] = {}
        self._gone: dict[str, tuple[int, str]] = {}
        self._moved: dict[str, None] = {}  # ids of instances with a load to be sent
        self._loads_at = now  # the earliest instant of the next `loads` message
        self._loads_due = False
        self._has_learned = False
        self._snapshot: tuple[int, bytes] | None = None

    def __len__(self) -> int:
        return len(self._leases)

    @property
    def tick_s(self) -> float:
        """Seconds between calls of `tick`."""
        return self.lease_s / TICKS_PER_LEASE

    @property
    def renew_s(self) -> float:
        """The renewal period that the hub requests from peers, in seconds."""
        return self.lease_s / RENEWALS_PER_LEASE

    def get(self, instance_id: str) -> Instance | None:
        """The record that is registered under an id; None when there is none."""
        lease = self._leases.get(instance_id)
        return lease.record if lease is not None else None

    # --- requests of peers ------------------------------------------------------------------------

    def register(self, peer: str, records: Sequence[Instance], now: float) -> None:
        """Give each record a lease held by `peer`, or renew its lease. All or none.

        Of two claims to an id the later epoch wins; an earlier one is ignored without an error, as its holder, a
        watcher too, gets the later record as news.

        Raises:
            ProtocolViolation: `peer` would hold more than `limits.peer_records`.
            Overloaded: the hub would exceed `limits.hub_records` or `limits.hub_bytes`.
        """
        encoded = {record.id: (record, encode_record(record)) for record in records}
        self._admit(peer, encoded)
        self.counts.registered += len(encoded)
        for instance_id, (record, raw) in encoded.items():
            lease = self._leases.get(instance_id)
            if lease is not None and record.epoch < lease.record.epoch:
                self.counts.superseded += 1
                continue
            if lease is not None:
                if lease.record.epoch == record.epoch and _is_same_but_for_load(record, lease.record):
                    self._hold(lease, peer, now)
                    self._note_load(lease, record.load)
                    continue
                self._drop(instance_id, lease)
            self._leases[instance_id] = lease = Lease(record, raw, peer, now + self.lease_s)
            self._held[peer] = self._held.get(peer, 0) + 1
            self._bytes += lease.size
            self._changed[instance_id] = None
            if self._gone.get(instance_id) == (record.epoch, EXPIRED):
                # Registered again in the loop turn of its expiry: watchers have not been told that it was gone.
                del self._gone[instance_id]

    def renew(self, peer: str, renewals: Sequence[Any], now: float) -> list[str]:
        """Renew leases: [id, epoch, load] each, one message for all instances of a peer.

        Returns:
            Ids for which this peer holds no lease, so that it must register them again.

        Raises:
            ProtocolViolation: a renewal has another shape, or a load is not 0.0 to 1.0.
        """
        self._refuse_excess("renew", renewals)
        unknown: list[str] = []
        leases = self._leases
        expires_at = now + self.lease_s
        for renewal in renewals:
            try:
                instance_id, epoch, load = renewal
                lease = leases.get(instance_id)
            except (TypeError, ValueError) as exc:
                raise ProtocolViolation(f"renew: expected [id, epoch, load], got {renewal!r:.80}") from exc
            if type(epoch) is not int or type(load) not in (float, int) or not 0.0 <= load <= 1.0:
                raise ProtocolViolation(f"renew: expected [id, epoch, load 0.0 to 1.0], got {renewal!r:.80}")
            if lease is None or lease.peer != peer or lease.record.epoch != epoch:
                if type(instance_id) is not str:
                    raise ProtocolViolation(f"renew: an id must be a string, got {instance_id!r:.80}")
                if lease is None or lease.record.epoch <= epoch:
                    unknown.append(instance_id)
                continue
            lease.expires_at = expires_at
            leases.move_to_end(instance_id)
            self._note_load(lease, load)
        self.counts.renewed += len(renewals) - len(unknown)
        self.counts.unknown += len(unknown)
        return unknown

    def leave(self, peer: str, claims: Sequence[Any]) -> None:
        """End leases at once: [id, epoch] each. Leases that this peer does not hold are ignored.

        Raises:
            ProtocolViolation: a claim has another shape.
        """
        self._refuse_excess("leave", claims)
        for claim in claims:
            match claim:
                case [str(instance_id), int(epoch)]:
                    lease = self._leases.get(instance_id)
                    if lease is not None and lease.peer == peer and lease.record.epoch <= epoch:
                        self._end(instance_id, lease, LEFT)
                        self.counts.left += 1
                case _:
                    raise ProtocolViolation(f"leave: expected [id, epoch], got {claim!r:.80}")

    # --- time -------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Do what is due: expire leases, end learning, send loads. Call it every `tick_s`."""
        if self._moved and now >= self._loads_at:
            self._loads_at = now + LOADS_S
            self._loads_due = True
        if now - self._ticked_at > self.lease_s / 2:
            self.counts.deaf += 1
            self.learning = True
            self.learn_until = max(self.learn_until, now + self.lease_s)
        self._ticked_at = now
        if self.learning:
            if now < self.learn_until:
                return
            self.learning = False
            self._has_learned = True
        while self._leases:
            instance_id, lease = next(iter(self._leases.items()))
            if lease.expires_at > now:
                return
            self._end(instance_id, lease, EXPIRED)
            self.counts.expired += 1

    # --- news for watchers --------------------------------------------------------------------------

    @property
    def has_news(self) -> bool:
        return bool(self._changed or self._gone or self._has_learned or self._loads_due)

    def take_news(self) -> list[News]:
        """The changes since the last call, as numbered news.

        "Learned" follows the changes, so that an instance registered in the same turn is listed before its absence
        would mean that it is gone. Loads follow the records to which they belong.
        """
        news: list[News] = []
        gone = [[key, epoch, reason] for key, (epoch, reason) in self._gone.items()]
        while len(gone) > GONE_AT_ONCE:
            self.number += 1
            news.append(News(self.number, records=NO_RECORDS, gone=gone[:GONE_AT_ONCE]))
            del gone[:GONE_AT_ONCE]
        if self._changed or gone:
            self.number += 1
            records = encode_records([self._encoded(self._leases[key]) for key in self._changed])
            news.append(News(self.number, records=records, gone=gone))
        self._changed, self._gone = {}, {}
        if self._has_learned:
            self.number += 1
            news.append(News(self.number, learned=True))
            self._has_learned = False
        if self._loads_due:
            self._loads_due = False
            news.append(News(self.number, loads=self._take_loads()))
        return news

    def snapshot(self) -> bytes:
        """Every record, encoded, as of `number`. Take the news first: the snapshot contains pending changes already."""
        if self._snapshot is None or self._snapshot[0] != self.number or self.has_news:
            body = encode_records([self._encoded(lease) for lease in self._leases.values()])
            self._snapshot = (self.number, body)
        return self._snapshot[1]

    def _take_loads(self) -> bytes:
        leases = self._leases
        moved, self._moved = self._moved, {}
        return encode_loads([(key, leases[key].record.load) for key in moved])

    # --- leases -----------------------------------------------------------------------------------

    def _admit(self, peer: str, encoded: dict[str, tuple[Instance, msgspec.Raw]]) -> None:
        held = self._held.get(peer, 0)
        total = len(self._leases)
        size = self._bytes
        for instance_id, (_, raw) in encoded.items():
            lease = self._leases.get(instance_id)
            held += lease is None or lease.peer != peer
            total += lease is None
            size += memoryview(raw).nbytes - (lease.size if lease is not None else 0)
        limits = self.limits
        if held > limits.peer_records:
            self.counts.refused += 1
            raise ProtocolViolation(f"register: {held} records held by one peer; at most {limits.peer_records}")
        if total > limits.hub_records or size > limits.hub_bytes:
            self.counts.refused += 1
            raise Overloaded(
                f"the hub is full: {total} records of {size} bytes; "
                f"at most {limits.hub_records} records and {limits.hub_bytes} bytes"
            )

    def _refuse_excess(self, kind: str, items: Sequence[Any]) -> None:
        if len(items) > self.limits.peer_records:
            self.counts.refused += 1
            raise ProtocolViolation(
                f"{kind}: {len(items)} instances in one message; at most {self.limits.peer_records} per peer"
            )

    def _hold(self, lease: Lease, peer: str, now: float) -> None:
        if lease.peer != peer:
            self._release(lease.peer)
            self._held[peer] = self._held.get(peer, 0) + 1
            lease.peer = peer
        lease.expires_at = now + self.lease_s
        self._leases.move_to_end(lease.record.id)

    def _note_load(self, lease: Lease, load: float) -> None:
        if abs(load - lease.record.load) > LOAD_STEP:
            lease.record = msgspec.structs.replace(lease.record, load=float(load))
            lease.encoded = None
            self._moved[lease.record.id] = None
            self._snapshot = None

    def _release(self, peer: str) -> None:
        self._held[peer] -= 1
        if not self._held[peer]:
            del self._held[peer]

    def _drop(self, instance_id: str, lease: Lease) -> None:
        del self._leases[instance_id]
        self._moved.pop(instance_id, None)
        self._bytes -= lease.size
        self._release(lease.peer)

    def _end(self, instance_id: str, lease: Lease, reason: str) -> None:
        self._drop(instance_id, lease)
        self._changed.pop(instance_id, None)
        self._gone[instance_id] = (lease.record.epoch, reason)

    def _encoded(self, lease: Lease) -> msgspec.Raw:
        if lease.encoded is None:
            lease.encoded = encode_record(lease.record)
        return lease.encoded


def _is_same_but_for_load(record: Instance, listed: Instance) -> bool:
    return record == listed or msgspec.structs.replace(record, load=listed.load) == listed
