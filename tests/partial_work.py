"""Leased work in memory, for the small engines of tests: items, sessions, and leasing one to the other.

Everything that is a rule comes from mesh.engines.semantics; what is here is the storage, as simple as it can be.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence

from mesh.clock import Clock, Timer
from mesh.engines.semantics.acknowledgements import due_at, given_up, stale
from mesh.engines.semantics.lifecycle import EVENT_OF, LIFECYCLE, Event
from mesh.engines.semantics.suspects import is_suspect, rank
from mesh.engines.semantics.validation import check_settlement
from mesh.events.log import LoggedEvent
from mesh.tasks.contract import (
    JobInfo,
    Lease,
    NewTask,
    Offer,
    Queue,
    Receiver,
    Settlement,
    Status,
    Verdict,
)


class Item:
    """A task or a delivery, until it is done or dropped."""

    def __init__(self, task: NewTask, age: int, wall: float, logged: LoggedEvent | None = None) -> None:
        self.task = task
        self.age = age
        self.logged = logged
        self.created_at = wall
        self.ready_at = self.due_at = wall
        self.finished_at = 0.0
        self.status: Status = "waiting"
        self.attempt = self.tries = self.lost = 0
        self.session = ""
        self.last = Settlement(task.id, 0, "release")

    def move(self, event: Event) -> None:
        self.status = LIFECYCLE[self.status, event]

    def lease(self) -> Lease:
        task, event = self.task, self.logged.event if self.logged else None
        lease = Lease(
            task.id,
            self.attempt,
            task.queue,
            task.body,
            created_at=self.created_at,
            lost=self.lost,
            trace=task.trace,
            meta=task.meta,
            timeout_s=task.timeout_s,
            tries=self.tries,
        )
        if event is None or self.logged is None:
            return lease
        fields = {"encoding": event.encoding, "key": event.key, "topic": event.topic, "event": event.id, "at": event.at}
        return Lease(
            **{name: getattr(lease, name) for name in lease.__struct_fields__} | fields | {"offset": self.logged.offset}  # type: ignore[arg-type]
        )

    def info(self) -> JobInfo:
        return JobInfo(
            id=self.task.id,
            queue=self.task.queue,
            status=self.status,
            priority=self.task.priority,
            attempt=self.attempt,
            lost=self.lost,
            created_at=self.created_at,
            finished_at=self.finished_at,
            body=self.task.body,
            reason=self.last.reason or "failed",
            error=self.last.error,
            traceback=self.last.traceback,
            event=self.logged.event.id if self.logged else "",
            topic=self.logged.event.topic if self.logged else "",
            offset=self.logged.offset if self.logged else 0,
            meta=self.task.meta,
        )


class Worker:
    """A session; `silent` while its process cannot be reached."""

    def __init__(self, work: Work, offer: Offer, receiver: Receiver) -> None:
        self._work = work
        self.offer = offer
        self.receiver = receiver
        self.credit = {queue.name: queue.credit for queue in offer.queues}
        self.held: dict[str, Item] = {}
        self.served = 0
        self.open = True
        self.silent: Timer | None = None

    async def stop(self) -> None:
        self.open = False

    async def close(self) -> None:
        # A silent one does not reach the engine.
        if self.silent is None:
            self._work.leave(self)


class Work:
    """All items, and the sessions that they are leased to."""

    def __init__(self, clock: Clock, lease_s: float, unknown_after_s: float) -> None:
        self.clock = clock
        self.items: dict[str, Item] = {}
        self.queues: dict[str, Queue] = {}
        self.done: Counter[str] = Counter()
        self.workers: dict[str, Worker] = {}
        self._lease_s = lease_s
        self._unknown_after_s = unknown_after_s
        self._known: set[str] = set()
        self._settled: dict[tuple[str, int], Verdict] = {}
        self._missing: dict[str, float] = {}
        self._served = 0
        self._timers: list[Timer] = []
        self._sharing = False

    # --- items --------------------------------------------------------------------------------------------

    def add(self, task: NewTask, due: float, logged: LoggedEvent | None = None) -> None:
        if task.id in self._known:
            return
        self._known.add(task.id)
        age = logged.offset if logged else len(self._known)
        item = self.items[task.id] = Item(task, age, self.clock.wall(), logged)
        item.move("begin")
        item.due_at = due
        self._wait(item)

    def _wait(self, item: Item) -> None:
        now = self.clock.wall()
        if item.due_at > now + 1e-6:
            self._timers.append(self.clock.call_at(self.clock.now() + item.due_at - now, self._due, item))
        else:
            self._due(item)

    def _due(self, item: Item) -> None:
        if item.status == "delayed" and item.due_at <= self.clock.wall() + 1e-6:
            item.move("due")
            item.ready_at = self.clock.wall()
            self.stir()

    def of(self, queue: str, *statuses: Status) -> list[Item]:
        found = [each for each in self.items.values() if each.task.queue == queue]
        return sorted((each for each in found if not statuses or each.status in statuses), key=lambda each: each.age)

    def settle(self, settlements: Sequence[Settlement]) -> None:
        for each in settlements:
            check_settlement(each)
            item = self.items.get(each.id)
            held = item is not None and item.status == "running" and item.attempt == each.attempt
            if not held and self._settled.get((each.id, each.attempt)) != each.verdict:
                raise stale(each, "it has another attempt, or was acknowledged otherwise")
        for each in settlements:
            item = self.items.get(each.id)
            if item is None or item.status != "running" or item.attempt != each.attempt:
                continue
            self._settled[each.id, each.attempt] = each.verdict
            if each.reason or each.error:
                item.last = each
            self._end(item, EVENT_OF[each.verdict], due_at(each.due_at, each.delay_s, self.clock.wall()), each.verdict)

    def _end(self, item: Item, event: Event, due: float, verdict: Verdict = "release") -> None:
        worker = self.workers.get(item.session)
        if worker is not None:
            worker.held.pop(item.task.id, None)
        item.session = ""
        item.move(event)
        if event == "again":
            item.tries -= verdict != "retry"
            item.due_at = due
            self._wait(item)
        elif event == "bury":
            item.finished_at = self.clock.wall()
        else:
            self.done[item.task.queue] += event == "done"
            del self.items[item.task.id]
        self.stir()

    def requeue(self, queue: str) -> int:
        dead = self.of(queue, "dead")
        for item in dead:
            item.move("requeue")
            item.tries = item.lost = 0
            item.due_at = 0.0
            item.move("begin")
            self._wait(item)
        return len(dead)

    def drop(self, queue: str) -> int:
        dead = self.of(queue, "dead")
        for item in dead:
            del self.items[item.task.id]
        return len(dead)

    # --- sessions -----------------------------------------------------------------------------------------

    def join(self, worker: Worker) -> None:
        self.workers[worker.offer.session] = worker
        self.queues |= {queue.name: queue for queue in worker.offer.queues}
        self._look_for_missing()
        self.stir()

    def leave(self, worker: Worker, *, died: bool = False) -> None:
        if self.workers.get(worker.offer.session) is not worker:
            return
        del self.workers[worker.offer.session]
        for item in list(worker.held.values()):
            item.lost += died
            error = given_up(item.lost, self.queues[item.task.queue].most_lost) if died else ""
            if error:
                item.last = Settlement(item.task.id, item.attempt, "dead", reason="lost", error=error)
            self._end(item, "bury" if error else "again", 0.0)
        self._look_for_missing()
        self.stir()

    def silence(self, worker: Worker) -> None:
        if worker.silent is None and self.workers.get(worker.offer.session) is worker:
            worker.silent = self.clock.call_at(self.clock.now() + self._lease_s, self._die, worker)

    def speak(self, worker: Worker) -> None:
        if worker.silent is not None:
            worker.silent.cancel()
            worker.silent = None
        if self.workers.get(worker.offer.session) is not worker:
            self.join(worker)
        has = set(worker.receiver.held())
        for item in list(worker.held.values()):
            if (item.task.id, item.attempt) not in has:
                self._end(item, "again", 0.0)
        self.stir()

    def _die(self, worker: Worker) -> None:
        held = bool(worker.held)
        self.leave(worker, died=True)
        worker.held.clear()
        if held:
            worker.receiver.lost("nothing was heard of this worker")

    def _look_for_missing(self) -> None:
        """Tasks of a service that runs, in queues that none of its workers declares, die after a time."""
        now = self.clock.now()
        for queue in {item.task.queue for item in self.items.values()}:
            service = queue.rpartition(".")[0]
            declared = any(queue in worker.credit for worker in self.workers.values())
            if declared or not any(service in worker.offer.services for worker in self.workers.values()):
                self._missing.pop(queue, None)
            elif queue not in self._missing:
                self._missing[queue] = now
                self._timers.append(self.clock.call_at(now + self._unknown_after_s, self._bury_unknown, queue))

    def _bury_unknown(self, queue: str) -> None:
        since = self._missing.get(queue)
        for item in self.of(queue, "ready") if since is not None else ():
            if max(item.ready_at - self.clock.wall() + self.clock.now(), since) + self._unknown_after_s <= (
                self.clock.now() + 1e-6
            ):
                item.last = Settlement(item.task.id, 0, "dead", reason="unknown", error=f"no worker knows {queue}")
                item.move("bury")

    # --- leasing ------------------------------------------------------------------------------------------

    def stir(self) -> None:
        if not self._sharing:
            self._sharing = True
            asyncio.get_running_loop().call_soon(self._share)

    def _share(self) -> None:
        self._sharing = False
        self._look_for_missing()
        ready = [item for item in self.items.values() if item.status == "ready"]
        given: dict[str, list[Lease]] = {}
        for item in sorted(ready, key=lambda item: (rank(item.task.priority), item.age)):
            worker = None if self._waits(item) else self._taker(item)
            if worker is None:
                continue
            item.move("lease")
            item.session = worker.offer.session
            item.attempt += 1
            item.tries += 1
            worker.held[item.task.id] = item
            self._served += 1
            worker.served = self._served
            given.setdefault(item.session, []).append(item.lease())
        for session, leases in given.items():
            self.workers[session].receiver.leased(leases)

    def _waits(self, item: Item) -> bool:
        """Whether an older delivery with the same key is not over."""
        if item.logged is None or not item.logged.event.key:
            return False
        key = item.logged.event.key
        return any(
            each.age < item.age and each.logged is not None and each.logged.event.key == key
            for each in self.of(item.task.queue, "delayed", "ready", "running")
        )

    def _taker(self, item: Item) -> Worker | None:
        queue = item.task.queue
        takers = [
            worker
            for worker in self.workers.values()
            if worker.open
            and worker.silent is None
            and sum(each.task.queue == queue for each in worker.held.values()) < worker.credit.get(queue, 0)
            and not any(is_suspect(each.lost) for each in worker.held.values())
            and not (is_suspect(item.lost) and worker.held)
        ]
        return min(takers, key=lambda worker: (len(worker.held), worker.served), default=None)

    def close(self) -> None:
        for timer in self._timers:
            timer.cancel()
        for worker in self.workers.values():
            if worker.silent is not None:
                worker.silent.cancel()
