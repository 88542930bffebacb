"""Everybody comes at once: what one hub goes through after a restart of itself, or of the whole mesh.

Owns: the queues in front of a hub (its I/O thread, its loop, its network card), and time that passes by what is done.
Leaves to others: leases and news, which are the hub's own code (discovery.registry); what an act costs (units).

A discrete-event simulation on the hand-turned clock. The registry is the real one, with real records: what it tells,
to whom, how many bytes that is and whose lease runs out follows from it. What cannot be had on one machine, the
processor time of ten thousand peers, is put in as measured. A hub's turn is the real one, too: at most DRAIN_BUDGET
messages, then the news of them to every watcher, then one snapshot for all who came.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final

from benchmarks.scaling.model import Model
from benchmarks.scaling.units import Units
from mesh.clock import ManualClock
from mesh.discovery.admission import encode_records
from mesh.discovery.registry import Registry
from mesh.errors import Overloaded
from mesh.policy.backoff import Backoff
from mesh.transport.sockets import DRAIN_BUDGET

#: Of mesh.toml's defaults.
LEASE_S: Final = 5.0
RENEW_S: Final = 1.0
CONNECT_TIMEOUT_S: Final = 2.0
#: The network card of a hub's host: 10 Gbit/s.
NETWORK_BYTES_PER_S: Final = 1.25e9
#: There and back within a data centre.
ROUND_TRIP_S: Final = 0.000_5
#: What stands around a body: the message's own head, ZMTP's and CURVE's.
AROUND_BYTES: Final = 80
#: Past this it is given up: whoever waited so long for a registry has been called out of bed.
PATIENCE_S: Final = 60.0

HELLO, ASK, RENEW, GIVE_UP, DIAL = range(5)


@dataclass
class Outcome:
    """What one storm came to.

    Attributes:
        settled_s: from its beginning until everybody is registered and has been told of everybody; None: not within
            PATIENCE_S.
        served: how many have had their snapshot.
        loop_s, io_s: processor time of the hub's loop and of its I/O thread.
        sent_bytes: that the hub has sent.
        expired: leases that ran out though their holders lived and had renewed.
        redials: connections that were given up because no welcome came in time.
        longest_wait_s: the longest that a message has lain unread.
        held_bytes: the most that snapshots took which were still being sent. All who come in one turn share one.
        news: numbered messages to every watcher.
    """

    settled_s: float | None = None
    served: int = 0
    loop_s: float = 0.0
    io_s: float = 0.0
    sent_bytes: float = 0.0
    expired: int = 0
    redials: int = 0
    longest_wait_s: float = 0.0
    held_bytes: int = 0
    news: int = 0


@dataclass
class Client:
    """One process that registers or watches."""

    number: int
    name: str
    records: list[Any]
    attempt: int = 0
    dialled_at: float = 0.0
    welcome: bool = False
    served_at: float | None = None
    claims: list[list[Any]] = field(default_factory=list)


class Storm:
    """One hub, and all who come to it."""

    def __init__(self, model: Model, units: Units, *, spread_s: float, seed: int = 1) -> None:
        """Args:
        spread_s: over how long they come.
        """
        self.units = units
        self.clock = ManualClock(start=0.0)
        self.registry = Registry(now=0.0, lease_s=LEASE_S)
        self.outcome = Outcome()
        self._rng = random.Random(seed)
        # What keys add to making a link is the I/O thread's; the rest is taken to be the loop's.
        self._handshake_us = units.worker_link_us - units.plain_worker_link_us
        self._backoff = Backoff(RENEW_S / 10, RENEW_S)
        self._order = itertools.count()
        self._coming: list[tuple[float, int, int, Client, int]] = []
        self._queue: deque[tuple[float, int, Client, int]] = deque()
        self._newcomers: list[Client] = []
        self._watchers = 0
        self._io_free = 0.0
        self._network_free = 0.0
        self._tick_at = self.registry.tick_s
        self._held: list[tuple[float, int]] = []
        self._last_at = 0.0
        self._registered: set[int] = set()
        self.clients = []
        for number in range(model.processes):
            host, place = divmod(number, model.workers + model.gateways)
            records = [model.record(host * model.workers + place)] if place < model.workers else []
            client = Client(number, records[0].worker if records else f"gateway-{number}", records)
            client.claims = [[record.id, record.epoch, 0.0] for record in records]
            self.clients.append(client)
            self._at(self._rng.random() * spread_s, DIAL, client)

    def _at(self, when: float, kind: int, client: Client) -> None:
        heapq.heappush(self._coming, (when, next(self._order), kind, client, client.attempt))

    def run(self) -> Outcome:
        """Until all have been told of all, or patience ends."""
        clock, out = self.clock, self.outcome
        while clock.now() < PATIENCE_S:
            self._arrive(clock.now())
            if not self._queue and not self._work_left:
                if out.served == len(self.clients) and not self.registry.learning and not self.registry.has_news:
                    last = max(client.served_at or 0.0 for client in self.clients)
                    if self._only_renewals_come and len(self._registered) == self._wanted:
                        out.settled_s = max(last, clock.now())
                        break
                nothing_until = min(self._tick_at, self._coming[0][0] if self._coming else PATIENCE_S)
                clock.turn(max(nothing_until - clock.now(), 0.0))
                if clock.now() >= self._tick_at:
                    self._tick()
                continue
            self._turn()
        out.expired = self.registry.counts.expired
        out.served = sum(1 for client in self.clients if client.served_at is not None)
        return out

    @property
    def _wanted(self) -> int:
        return sum(1 for client in self.clients if client.records)

    @property
    def _work_left(self) -> bool:
        return self.registry.has_news or bool(self._newcomers)

    @property
    def _only_renewals_come(self) -> bool:
        return all(kind == RENEW or (kind == GIVE_UP and client.welcome) for _, _, kind, client, _ in self._coming)

    # --- what comes ---------------------------------------------------------------------------------------

    def _arrive(self, now: float) -> None:
        """Let what is due reach the hub's queue."""
        coming = self._coming
        while coming and coming[0][0] <= now:
            when, _, kind, client, attempt = heapq.heappop(coming)
            if attempt != client.attempt:
                continue
            if kind == DIAL:
                client.dialled_at = when
                # Handshakes are made one after the other, by the one I/O thread of the hub's context. It is taken to
                # lose nothing over one that was given up before its turn.
                begins_at = max(self._io_free, when)
                if begins_at < when + CONNECT_TIMEOUT_S:
                    self._io_free = begins_at + self._handshake_us / 1e6
                    self.outcome.io_s += self._handshake_us / 1e6
                    self._at(max(self._io_free, when + ROUND_TRIP_S), HELLO, client)
                self._at(when + CONNECT_TIMEOUT_S, GIVE_UP, client)
            elif kind == GIVE_UP:
                if not client.welcome:
                    client.attempt += 1
                    self.outcome.redials += 1
                    delay = self._backoff.delay(client.attempt, self._rng.random())
                    self._at(when + delay, DIAL, client)
            else:
                self._queue.append((when, kind, client, attempt))
                if kind == RENEW:
                    self._at(when + RENEW_S, RENEW, client)

    # --- one turn of the hub's loop -----------------------------------------------------------------------

    def _turn(self) -> None:
        units, clock = self.units, self.clock
        spent_us = 0.0
        begun = clock.now()
        for _ in range(min(DRAIN_BUDGET, len(self._queue))):
            at, kind, client, attempt = self._queue.popleft()
            self.outcome.longest_wait_s = max(self.outcome.longest_wait_s, begun - at)
            spent_us += units.hub_renewal_us  # reading a message costs about the same, whatever it says
            if attempt != client.attempt:
                continue
            if kind == HELLO:
                spent_us += units.plain_worker_link_us
                client.welcome = True
                self._at(begun + ROUND_TRIP_S, ASK, client)
                if client.claims:
                    self._at(begun + self._rng.random() * RENEW_S, RENEW, client)
            elif kind == ASK:
                spent_us += self._ask(client, begun)
            elif self.registry.renew(client.name, client.claims, begun):
                # Unknown: it registers again.
                self._registered.discard(client.number)
                spent_us += self._register(client, begun)
        clock.turn(spent_us / 1e6)
        if clock.now() >= self._tick_at:
            self._tick()
        spent_us += self._tell()
        self.outcome.loop_s += spent_us / 1e6

    def _ask(self, client: Client, now: float) -> float:
        spent_us = self._register(client, now)
        self._newcomers.append(client)
        return spent_us

    def _register(self, client: Client, now: float) -> float:
        if not client.records:
            return 0.0
        try:
            self.registry.register(client.name, client.records, now)
        except Overloaded:
            return self.units.hub_register_us
        self._registered.add(client.number)
        return self.units.hub_register_us

    def _tick(self) -> None:
        self.registry.tick(self.clock.now())
        self._tick_at = self.clock.now() + self.registry.tick_s

    def _tell(self) -> float:
        """News to every watcher, then one snapshot for all who have come."""
        units, out = self.units, self.outcome
        spent_us = 0.0
        if self.registry.has_news:
            for item in self.registry.take_news():
                size = len(item.records) + len(item.loads) + 40 * len(item.gone) + AROUND_BYTES
                spent_us += self._watchers * units.hub_news_us
                self._send(self._watchers, size)
                out.news += 1
        if self._newcomers:
            body = self.registry.snapshot()
            spent_us += len(self.registry) * units.hub_snapshot_record_us
            spent_us += len(self._newcomers) * units.hub_news_us
            read_us = len(self.registry) * units.agent_snapshot_record_us
            for client in self._newcomers:
                arrives_at = self._send(1, len(body) + AROUND_BYTES)
                self._last_at = arrives_at
                client.served_at = max(arrives_at, self.clock.now() + spent_us / 1e6) + read_us / 1e6
            self._hold(len(body), self._last_at)
            self._watchers += len(self._newcomers)
            out.served += len(self._newcomers)
            self._newcomers = []
        self.clock.turn(spent_us / 1e6)
        return spent_us

    def _send(self, copies: int, size: float) -> float:
        """Through the I/O thread, which encrypts, and then the network; when it has left."""
        now, total = self.clock.now(), copies * size
        encrypting_s = total * self.units.hub_byte_ns / 1e9
        self._io_free = max(self._io_free, now) + encrypting_s
        self._network_free = max(self._network_free, now) + total / NETWORK_BYTES_PER_S
        self.outcome.io_s += encrypting_s
        self.outcome.sent_bytes += total
        return max(self._io_free, self._network_free)

    def _hold(self, size: int, until: float) -> None:
        """A snapshot stays in memory until its last reader has it."""
        self._held.append((until, size))
        self._held = [(when, held) for when, held in self._held if when > self.clock.now()]
        self.outcome.held_bytes = max(self.outcome.held_bytes, sum(held for _, held in self._held))


def snapshot_bytes(model: Model) -> int:
    """How long a snapshot of the whole mesh is."""
    return len(encode_records([model.record(number) for number in range(model.instances)]))
