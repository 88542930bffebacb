"""The store's metrics: gauges for /metrics, its queues, and `info` for people.

Owns: names of metrics, and which queues have series of their own. Leaves to others: counting (turns, the core).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import msgspec

from mesh.engines.sqlite.core import Core
from mesh.engines.sqlite.messages import StoreInfo
from mesh.engines.steady import SteadyClock
from mesh.store.dispatch import Dispatch
from mesh.store.queueing import LockQueues
from mesh.store.sessions import Sessions
from mesh.store.turns import Turns
from mesh.store.watches import Watches
from mesh.tasks.contract import QueueInfo
from mesh.telemetry.metrics import OTHER, Recorder

#: Queues with series of their own; the rest are added up as "other". Any caller that defers can make up a name.
MOST_QUEUES: Final = 200
#: How long a snapshot of the queues is reused: a page of metrics reads all gauges one after another.
FRESH_S: Final = 0.5

_PER_QUEUE: Final[tuple[tuple[str, str, Callable[[QueueInfo], float]], ...]] = (
    ("tasks_ready", "Tasks that wait for a worker.", lambda queue: queue.ready),
    ("tasks_running", "Tasks that are leased to a worker.", lambda queue: queue.running),
    ("tasks_delayed", "Tasks that are not due yet.", lambda queue: queue.delayed),
    ("tasks_waiting", "Tasks that wait for other tasks.", lambda queue: queue.waiting),
    ("tasks_buried", "Dead letters of tasks.", lambda queue: queue.dead),
    (
        "tasks_finished",
        "Tasks that have finished; after kill -9 those of the last five seconds may be missing.",
        lambda queue: queue.done,
    ),
    ("tasks_oldest_seconds", "How long the oldest ready task has been ready.", lambda queue: queue.oldest_s),
    ("tasks_workers", "Workers that are subscribed to the queue.", lambda queue: queue.workers),
    ("events_backlog", "Kept events that have not been turned into deliveries yet.", lambda queue: queue.backlog),
)


class Measured(Protocol):
    """The parts of the store that its metrics show; see mesh.store.service.Store."""

    clock: SteadyClock
    host: str
    began_at: float
    core: Core
    turns: Turns
    sessions: Sessions
    watches: Watches
    lines: LockQueues

    def list_queues(self) -> list[QueueInfo]: ...


def with_workers(queues: Sequence[QueueInfo], dispatch: Dispatch) -> list[QueueInfo]:
    """The core's queues, with the number of sessions that are subscribed to each."""
    return [msgspec.structs.replace(queue, workers=dispatch.workers(queue.name)) for queue in queues]


class _Queues:
    """A snapshot of the queues, shared by many gauges."""

    def __init__(self, store: Measured, recorder: Recorder) -> None:
        self._store = store
        self._recorder = recorder
        self._at = -1.0
        self._named: dict[str, QueueInfo] = {}
        self._others: list[QueueInfo] = []
        self._known: set[str] = set()

    def look(self) -> float:
        """How many queues there are. Read first: it creates the series of new queues."""
        store = self._store
        now = store.clock.now()
        if self._at < 0 or now - self._at > FRESH_S:
            self._at = now
            self._named = {}
            self._others = []
            for queue in store.list_queues():
                if queue.name in self._known or len(self._known) < MOST_QUEUES:
                    self._add(queue.name)
                    self._named[queue.name] = queue
                else:
                    self._add(OTHER)
                    self._others.append(queue)
        return len(self._named) + len(self._others)

    def _add(self, name: str) -> None:
        if name in self._known:
            return
        self._known.add(name)
        for metric, help, read in _PER_QUEUE:
            self._recorder.gauge(metric, self._reader(name, read), help, queue=name)

    def _reader(self, name: str, read: Callable[[QueueInfo], float]) -> Callable[[], float]:
        def value() -> float:
            self.look()
            if name == OTHER:
                return float(sum(map(read, self._others)))
            queue = self._named.get(name)
            return float(read(queue)) if queue is not None else 0.0

        return value


def register(recorder: Recorder, store: Measured) -> None:
    """Register the store's gauges with the recorder of its process."""
    figures = store.turns.figures
    queues = _Queues(store, recorder)

    gauge, total = recorder.gauge, recorder.total
    gauge("store_queues", queues.look, "Queues and durable subscriptions that are known.")
    total("store_turns", lambda: figures.turns, "Commits since the store started.")
    total("store_turns_failed", lambda: figures.failures, "Transactions that could not be written.")
    total("store_turn_seconds", lambda: figures.total_s, "Total duration of all transactions, in seconds.")
    gauge(
        "store_turn_longest_seconds",
        lambda: figures.longest_s(store.clock.now()),
        "The longest transaction of the last 60 seconds, in seconds.",
    )
    total("store_units", lambda: figures.units, "Units that were committed since the store started.")
    total("store_leases", lambda: figures.leases, "Leases that were granted since the store started.")
    gauge("store_batch_units", lambda: figures.units / max(1, figures.turns), "Average number of units per commit.")
    gauge("store_units_waiting", lambda: store.turns.waiting, "Units that wait for the disk.")
    gauge("store_sessions", lambda: len(store.sessions), "Workers' sessions that are known.")
    gauge("store_watched_jobs", lambda: store.watches.jobs, "Jobs that clients wait for.")
    gauge("store_lock_waiters", lambda: len(store.lines), "Callers that wait for a lock.")
    gauge("store_writable", lambda: float(not store.turns.trouble), "1 while the store can write to its disk, else 0.")
    gauge("store_file_bytes", lambda: store.core.info().size_bytes, "Size of the database file, in bytes.")
    gauge("store_log_bytes", lambda: store.core.info().wal_bytes, "Size of the write-ahead log, in bytes.")


def info(store: Measured) -> StoreInfo:
    """The present state of the store."""
    file = store.core.info()
    figures = store.turns.figures
    return StoreInfo(
        path=str(file.path),
        pid=os.getpid(),
        host=store.host,
        uptime_s=store.clock.now() - store.began_at,
        writable=file.writable and not store.turns.trouble,
        trouble=store.turns.trouble or file.reason,
        sessions=len(store.sessions),
        waiting_units=store.turns.waiting,
        turns=figures.turns,
        units=figures.units,
        schema=file.schema,
        file_bytes=file.size_bytes,
        log_bytes=file.wal_bytes,
        free_bytes=file.free_bytes,
        tasks=file.tasks,
        events=file.events,
        id=store.core.id,
    )
