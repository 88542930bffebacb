"""Every engine against a model of a few lines: whatever is done to tasks in whatever order, both see the same."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

import pytest
from engine_kinds import KINDS
from engine_rig import T_S, Hand, Rig
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine

from mesh.engines.contract import Engine
from mesh.errors import LeaseLost
from mesh.tasks.contract import Lease, NewTask, Ticket, Verdict

NEEDS = {"queues", "jobs", "flows", "quotas"}


CREDIT = 3
KEEP_S = 30.0


class Known:
    """A job, as the model has it."""

    def __init__(self, task: NewTask, age: int) -> None:
        self.task = task
        self.age = age
        self.status = "waiting" if task.waits else "delayed"
        self.due_at = task.due_at
        self.ends_at = 0.0
        self.tries = 0
        self.asked = False
        #: Of its order it is the one whose turn it is.
        self.on_turn = not task.order

    @property
    def alive(self) -> bool:
        return self.status in ("waiting", "delayed", "ready", "running")


class Model:
    """What the contract says of one queue and one worker, in the plainest way: it looks at everything each time."""

    def __init__(self, now: float) -> None:
        self.now = now
        self.jobs: dict[str, Known] = {}
        self.ages = 0
        self.attached = False

    def defer(self, tasks: list[NewTask]) -> list[tuple[str, bool]]:
        tickets: dict[str, tuple[str, bool]] = {}
        made: list[Known] = []
        for task in tasks:
            first = next((job for job in [*self.jobs.values(), *made] if task.key and job.task.key == task.key), None)
            tickets[task.id] = (first.task.id, False) if first is not None else (task.id, True)
            if first is None:
                made.append(Known(task, 0))
        for task in reversed(tasks):
            if task.feeds and not tickets[task.feeds][1]:
                tickets[task.id] = (task.id, False)
        for job in made:
            if tickets[job.task.id][1]:
                self.ages += 1
                job.age = self.ages
                self.jobs[job.task.id] = job
        return [tickets[task.id] for task in tasks]

    def settle(self, id: str, verdict: str, due_at: float) -> None:
        job = self.jobs[id]
        if verdict == "done":
            self._end(job, "done")
        elif verdict == "dead":
            self._end(job, "dead")
        elif job.asked or verdict == "cancelled":
            self._end(job, "cancelled")
        else:
            job.status = "delayed"
            job.due_at = due_at
            job.tries -= verdict == "release"

    def cancel(self, id: str) -> None:
        job = self.jobs[id]
        if job.status == "running":
            job.asked = True
        elif job.alive:
            self._end(job, "cancelled")

    def _end(self, job: Known, status: str) -> None:
        job.status = status
        job.asked = False
        job.on_turn = not job.task.order
        job.ends_at = self.now + job.task.keep_s
        fed = self.jobs.get(job.task.feeds)
        if status != "done" and fed is not None and fed.alive:
            self._end(fed, "dead")

    def _causes(self, job: Known) -> list[Known]:
        return [each for each in self.jobs.values() if each.task.feeds == job.task.id]

    def requeue(self) -> int:
        dead = [job for job in self.jobs.values() if job.status == "dead"]
        count = 0
        for job in dead:
            # Here a chain has two links, and its first is kept for as long as anything.
            if not any(cause.status in ("dead", "cancelled") for cause in self._causes(job)) and job.status == "dead":
                self._revive(job)
                count += 1
        return count

    def _revive(self, job: Known) -> None:
        job.status, job.due_at, job.tries = "delayed", 0.0, 0
        fed = self.jobs.get(job.task.feeds)
        if fed is not None and fed.status == "dead":
            fed.status, fed.due_at, fed.tries = "waiting", fed.task.due_at, 0

    def settled(self) -> None:
        """Everything that follows by itself."""
        for id, job in list(self.jobs.items()):
            if job.status in ("done", "cancelled") and job.ends_at <= self.now:
                del self.jobs[id]
        for job in self.jobs.values():
            if job.status == "waiting" and all(cause.status == "done" for cause in self._causes(job)):
                job.status = "delayed"
        for order in {job.task.order for job in self.jobs.values()} - {""}:
            line = sorted((job for job in self.jobs.values() if job.task.order == order and job.alive), key=_age)
            if line and not any(job.on_turn for job in line):
                line[0].on_turn = line[0].status != "waiting"
        ready = [job for job in self.jobs.values() if job.status in ("delayed", "ready") and job.on_turn]
        for job in ready:
            job.status = "ready" if job.due_at <= self.now else "delayed"
        ready = sorted((job for job in ready if job.status == "ready"), key=lambda job: (-job.task.priority, job.age))
        running = sum(job.status == "running" for job in self.jobs.values())
        for job in ready[: max(0, CREDIT - running) if self.attached else 0]:
            job.status = "running"
            job.tries += 1

    def seen(self) -> dict[str, tuple[str, int]]:
        """What anybody can see: statuses and tries. What waits for its order is `waiting`, too."""
        found = {}
        for id, job in self.jobs.items():
            behind = job.alive and not job.on_turn
            found[id] = ("waiting" if behind else job.status, job.tries if job.status == "running" else 0)
        return found


def _age(job: Known) -> int:
    return job.age


class TaskMachine(RuleBasedStateMachine):
    """One queue, one worker that comes and goes, and everything that may be done to its tasks."""

    kind = "memory"
    held: Bundle[str] = Bundle("held")

    @initialize()
    def begin(self) -> None:
        self.runner = asyncio.Runner()
        self.rig: Rig = KINDS[self.kind]()
        self.run(self.rig.start())
        self.engine: Engine = self.run(self.rig.engine())
        self.worker: Engine = self.run(self.rig.engine())
        self.hand: Hand | None = None
        self.stale: list[Lease] = []
        self.model = Model(self.rig.clock.wall())

    def run(self, awaitable: Any) -> Any:
        return self.runner.run(awaitable)

    async def _defer(self, tasks: Sequence[NewTask]) -> Sequence[Ticket]:
        """Calls the engine inside the running loop, which its future needs."""
        return await self.engine.queues.defer(tasks, timeout_s=T_S)

    def teardown(self) -> None:
        if hasattr(self, "runner"):
            try:
                self.run(self.rig.close())
                self.rig.check()
            finally:
                self.runner.close()

    # --- what is done

    @rule(
        priorities=st.lists(st.integers(3, 6), min_size=1, max_size=4),
        order=st.sampled_from(["", "", "o", "p"]),
        key=st.sampled_from(["", "", "", "k1", "k2"]),
        delay_s=st.sampled_from([0.0, 0.0, 0.0, 5.0, 20.0]),
    )
    def defer(self, priorities: list[int], order: str, key: str, delay_s: float) -> None:
        due_at = self.rig.clock.wall() + delay_s if delay_s else 0.0
        self.put([self.task(priority=each, order=order, key=key, due_at=due_at) for each in priorities])

    @rule(priority=st.integers(3, 6), key=st.sampled_from(["", "k1"]), order=st.sampled_from(["", "o"]))
    def chain(self, priority: int, key: str, order: str) -> None:
        last = self.task(key=key, waits=1, order=order)
        self.put([self.task(priority=priority, feeds=last.id, keep_s=1e6), last])

    def task(self, keep_s: float = KEEP_S, **fields: Any) -> NewTask:
        return self.rig.task(keep_s=keep_s, **fields)

    def put(self, tasks: list[NewTask]) -> None:
        tickets = self.run(self._defer(tasks))
        assert [(ticket.id, ticket.fresh) for ticket in tickets] == self.model.defer(tasks)
        self.compare()

    @precondition(lambda self: self.hand is None)
    @rule()
    def attach(self) -> None:
        self.hand = self.run(self.rig.hand("mail.send", credit=CREDIT, engine=self.worker))
        self.model.attached = True
        self.compare()

    @precondition(lambda self: self.hand is not None)
    @rule()
    def leave(self) -> None:
        self.stale += self.hand.holding.values()
        for lease in self.hand.holding.values():
            self.model.settle(lease.id, "release", 0.0)
        self.run(self.hand.leave())
        self.hand = None
        self.model.attached = False
        self.compare()

    @precondition(lambda self: self.hand is not None and self.hand.holding)
    @rule(
        which=st.integers(0, CREDIT - 1),
        verdict=st.sampled_from(["done", "retry", "dead", "release", "cancelled"]),
        delay_s=st.sampled_from([0.0, 5.0]),
    )
    def settle(self, which: int, verdict: Verdict, delay_s: float) -> None:
        leases = list(self.hand.holding.values())
        lease = leases[which % len(leases)]
        due_at = self.rig.clock.wall() + delay_s if delay_s and verdict == "retry" else 0.0
        self.run(self.hand.settle(lease, verdict, due_at=due_at))
        self.model.settle(lease.id, verdict, due_at)
        self.stale.append(lease)
        self.compare()

    @precondition(lambda self: self.stale)
    @rule(which=st.integers(0, 1000), verdict=st.sampled_from(["done", "dead", "retry", "release"]))
    def settle_what_is_not_its_own(self, which: int, verdict: Verdict) -> None:
        lease = self.stale[which % len(self.stale)]
        hand = self.hand or Hand(self.rig, self.engine, "nobody")
        # Or it says what it said before, and nothing happens either.
        with contextlib.suppress(LeaseLost):
            self.run(hand.settle(lease, verdict))
        self.compare()

    @precondition(lambda self: self.model.jobs)
    @rule(which=st.integers(0, 1000), running=st.booleans())
    def cancel(self, which: int, running: bool) -> None:
        among = [id for id, job in self.model.jobs.items() if job.status == "running"] if running else []
        among = among or list(self.model.jobs)
        id = among[which % len(among)]
        self.run(self.engine.jobs.cancel(id, timeout_s=T_S))
        self.model.cancel(id)
        self.compare()

    @precondition(lambda self: any(job.status == "dead" for job in self.model.jobs.values()))
    @rule()
    def requeue(self) -> None:
        assert self.run(self.engine.leases.requeue("mail.send", timeout_s=T_S)) == self.model.requeue()
        self.compare()

    @precondition(lambda self: any(job.status == "dead" for job in self.model.jobs.values()))
    @rule(which=st.integers(0, 1000))
    def drop(self, which: int) -> None:
        dead = [id for id, job in self.model.jobs.items() if job.status == "dead" and not job.task.feeds]
        for id in dead[which % len(dead) :][:1] if dead else ():
            assert self.run(self.engine.leases.drop("mail.send", [id], timeout_s=T_S)) == 1
            del self.model.jobs[id]
        self.compare()

    @rule(seconds=st.sampled_from([1.0, 6.0, 25.0, KEEP_S + 1.0]))
    def wait(self, seconds: float) -> None:
        # What comes due is given out then, not at the end.
        end = self.rig.clock.wall() + seconds
        while (left := end - self.rig.clock.wall()) > 1e-6:
            dues = [job.due_at - self.rig.clock.wall() for job in self.model.jobs.values() if job.status == "delayed"]
            step = min([left, *(due + 0.05 for due in dues if due > 0)])
            self.run(self.rig.pass_time(step))
            self.compare()

    # --- what is seen

    def compare(self) -> None:
        self.model.now = self.rig.clock.wall()
        self.model.settled()
        self.run(self.rig.quiet())
        seen = {}
        holding = {id: lease for (id, _), lease in self.hand.holding.items()} if self.hand is not None else {}
        for id in self.model.jobs:
            info = self.run(self.engine.jobs.find(id, timeout_s=T_S))
            seen[id] = (info.status if info is not None else "forgotten", holding[id].tries if id in holding else 0)
        assert seen == self.model.seen()
        [queue] = self.run(self.engine.leases.queues(timeout_s=T_S)) or [None]
        if queue is not None:
            statuses = [status for status, _ in seen.values()]
            counted = {name: getattr(queue, name) for name in ("waiting", "delayed", "ready", "running", "dead")}
            assert counted == {name: statuses.count(name) for name in counted}


#: How many stories, and of how many acts.
STORIES = {"memory": (80, 40), "sqlite": (12, 30)}


@pytest.mark.parametrize("kind", [name for name, rig in KINDS.items() if rig.offers >= NEEDS])
def test_an_engine_does_as_the_model_does(kind: str) -> None:
    """Statuses, tries, tickets, counts and who runs, after every act."""
    examples, acts = STORIES.get(kind, (5, 30))
    machine = type("Machine", (TaskMachine,), {"kind": kind})
    run_machine(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=acts,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
