"""The core against a model that fits on two pages: whatever is done in whatever order, both are the same."""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sqlite_bench import QUICK_DIR, Bench, memory

from mesh.engines.contract import Unit
from mesh.engines.sqlite.status import PROOF_S
from mesh.errors import LeaseLost, from_wire
from mesh.tasks.contract import OVER, Lease, NewTask, Queue, Settlement, Verdict

QUEUES = ("a.one", "a.two")
SESSIONS = ("w1", "w2")
MOST_LOST = 4


@dataclass
class Model:
    """A job as it should be."""

    task: NewTask
    age: int
    status: str = "waiting"
    attempt: int = 0
    tries: int = 0
    lost: int = 0
    waits: int = 0
    broken: int = 0
    due_at: float = 0.0
    ends_at: float = 0.0
    proof_until_at: float = math.inf
    session: str = ""
    asked: bool = False
    settled: tuple[int, str] | None = None
    answers: dict[int, bytes] = field(default_factory=dict)


class Mesh:
    """All jobs as they should be."""

    def __init__(self) -> None:
        self.jobs: dict[str, Model] = {}
        self.ages = 0
        self.wall = 0.0

    def visible(self, id: str) -> Model | None:
        job = self.jobs.get(id)
        gone = job is not None and job.status in ("done", "cancelled") and job.ends_at <= self.wall
        return None if job is None or gone or job.status == "gone" else job

    def first_of_key(self, task: NewTask) -> str | None:
        if not task.key:
            return None
        for id, job in self.jobs.items():
            if (job.task.queue, job.task.key) == (task.queue, task.key) and self.visible(id):
                return id
        return None

    def defer(self, tasks: list[NewTask]) -> list[tuple[str, bool]]:
        known: dict[str, str] = {}
        firsts: dict[tuple[str, str], str] = {}
        for task in tasks:
            first = self.first_of_key(task) or firsts.get((task.queue, task.key))
            if first:
                known[task.id] = first
            elif task.key:
                firsts[task.queue, task.key] = task.id
        dropped: set[str] = set()
        for task in reversed(tasks):
            if task.feeds and (task.feeds in known or task.feeds in dropped):
                dropped.add(task.id)
        tickets = []
        for task in tasks:
            fresh = task.id not in known and task.id not in dropped
            tickets.append((known.get(task.id, task.id), fresh))
            if fresh:
                self.ages += 1
                job = self.jobs[task.id] = Model(task, self.ages, waits=task.waits, due_at=task.due_at)
                self.start(job)
        return tickets

    def line(self, job: Model) -> list[Model]:
        every = [each for each in self.jobs.values() if each.task.queue == job.task.queue]
        alive = [each for each in every if each.status not in OVER and each.status != "gone"]
        return sorted((each for each in alive if each.task.order == job.task.order), key=lambda each: each.age)

    def start(self, job: Model) -> None:
        """What waits begins, unless something holds it back."""
        if job.task.order:
            line = self.line(job)
            if not line or any(each.status != "waiting" for each in line):
                return
            job = line[0]
        if job.status == "waiting" and not job.waits and not job.broken:
            job.status = "delayed" if job.due_at > self.wall else "ready"

    def claim(self, queue: str, n: int, session: str, solo: bool) -> list[Model]:
        ready = [job for job in self.jobs.values() if job.task.queue == queue and job.status == "ready"]
        fit = [job for job in ready if (job.lost >= 2) == solo]
        fit.sort(key=lambda job: (-job.task.priority, job.age))
        for job in fit[:n]:
            job.status = "running"
            job.attempt += 1
            job.tries += 1
            job.session = session
            # What an earlier attempt said may be refused from now on, also when this one is taken back.
            job.settled = None
        return fit[:n]

    def again(self, job: Model, due_at: float) -> None:
        if job.asked:
            self.end(job, "cancelled")
            return
        job.session = ""
        job.due_at = due_at
        job.status = "delayed" if due_at > self.wall else "ready"

    def settle(self, job: Model, verdict: str, due_at: float, result: bytes) -> None:
        job.settled = (job.attempt, verdict)
        if verdict == "done":
            self.end(job, "done", result)
        elif verdict in ("dead", "cancelled"):
            self.end(job, verdict)
        else:
            job.tries -= verdict == "release"
            self.again(job, due_at)

    def lose(self, job: Model) -> None:
        job.lost += 1
        job.tries -= 1
        if not job.asked and job.lost >= MOST_LOST:
            self.end(job, "dead")
        else:
            self.again(job, 0.0)

    def end(self, job: Model, status: str, result: bytes = b"") -> None:
        job.status = status
        job.session = ""
        job.asked = False
        if status != "dead":
            job.ends_at = self.wall + job.task.keep_s
            job.proof_until_at = max(job.ends_at, self.wall + PROOF_S)
        fed = self.jobs.get(job.task.feeds)
        if fed is not None and (fed.status == "waiting" or (fed.status == "dead" and fed.broken)):
            if status == "done":
                fed.waits -= 1
                fed.answers[job.task.place] = result or b"\xc0"
                self.start(fed)
            else:
                fed.broken += 1
                if fed.status == "waiting":
                    self.end(fed, "dead")
        if job.task.order:
            self.start(job)

    def requeue(self, job: Model) -> None:
        job.tries = job.lost = 0
        job.due_at = 0.0
        job.settled = None
        job.status = "waiting"
        self.start(job)
        while (fed := self.jobs.get(job.task.feeds)) is not None and fed.broken and fed.status == "dead":
            fed.broken -= 1
            if fed.broken:
                return
            fed.status = "waiting"
            fed.tries = fed.lost = 0
            fed.settled = None
            job = fed


class Machine(RuleBasedStateMachine):
    """Deeds on both; after each, both are looked at."""

    @initialize()
    def begin(self) -> None:
        self.dir = tempfile.TemporaryDirectory(prefix="mesh-engines-", dir=QUICK_DIR)
        self.bench = Bench(Path(self.dir.name) / "data")
        self.model = Mesh()
        self.model.wall = self.bench.wall
        self.leases: list[Lease] = []
        with self.bench.core.turn(self.bench.wall) as turn:
            for queue in QUEUES:
                turn.declare(Queue(queue, 10, most_lost=MOST_LOST))

    def teardown(self) -> None:
        if hasattr(self, "bench"):
            self.bench.sound()
            self.bench.core.close()
            self.dir.cleanup()

    # --- deeds -------------------------------------------------------------------------------------------

    @rule(
        rows=st.lists(
            st.tuples(
                st.sampled_from(QUEUES),
                st.sampled_from(["", "", "k1", "k2"]),
                st.sampled_from(["", "", "o1", "o2"]),
                st.sampled_from([0, 5, 5, 9]),
                st.sampled_from([0, 0, 0, 7]),
                st.sampled_from([0.0, 5.0, 5000.0]),
                st.sampled_from([1, 3000]),
            ),
            min_size=1,
            max_size=5,
        )
    )
    def defer(self, rows: list[tuple[str, str, str, int, int, float, int]]) -> None:
        tasks = [
            self.bench.task(
                queue,
                b"x" * size,
                key=key,
                order=order,
                priority=priority,
                due_at=self.bench.wall + delay if delay else 0.0,
                keep_s=keep_s,
            )
            for queue, key, order, priority, delay, keep_s, size in rows
        ]
        self._defer(tasks)

    @rule(
        size=st.integers(1, 3),
        gathers=st.booleans(),
        key=st.sampled_from(["", "k3"]),
        order=st.sampled_from(["", "o1"]),
        then=st.booleans(),
    )
    def compose(self, size: int, gathers: bool, key: str, order: str, then: bool) -> None:
        """A group, or a chain, with something behind it perhaps."""
        last, after = self.bench.id(), self.bench.id()
        tasks = [self.bench.task("a.one", feeds=last, place=place, order=order, keep_s=0.0) for place in range(size)]
        tasks.append(
            NewTask(last, "a.two", b"\x90", waits=size, gathers=gathers, key="" if then else key, feeds=after * then)
        )
        if then:
            tasks.append(NewTask(after, "a.one", b"\x90", waits=1, key=key, order=order))
        self._defer(tasks)

    def _defer(self, tasks: list[NewTask]) -> None:
        unit = self.bench.unit(tasks=tasks)
        [outcome] = self.bench.apply(unit)
        expected = self.model.defer(tasks)
        assert [(ticket.id, ticket.fresh) for ticket in outcome.tickets] == expected
        again = self.bench.apply(unit, unit)
        assert [msgspec.msgpack.encode(each) for each in again] == [msgspec.msgpack.encode(outcome)] * 2

    @rule(queue=st.sampled_from(QUEUES), n=st.integers(1, 4), session=st.sampled_from(SESSIONS), solo=st.booleans())
    def claim(self, queue: str, n: int, session: str, solo: bool) -> None:
        self._check_claim(queue, session, self.bench.claim(n, session, queue, solo=solo), n, solo)

    def _check_claim(self, queue: str, session: str, leases: list[Lease], n: int, solo: bool) -> None:
        expected = self.model.claim(queue, n, session, solo)
        found = [(lease.id, lease.attempt, lease.tries, lease.lost, lease.body) for lease in leases]
        assert found == [(job.task.id, job.attempt, job.tries, job.lost, job.task.body) for job in expected]
        for lease, job in zip(leases, expected, strict=True):
            answers = [job.answers[place] for place in sorted(job.answers)]
            if job.task.gathers:
                assert lease.prior == bytes([0x90 + len(answers)]) + b"".join(answers)
            else:
                assert lease.prior == (answers[0] if answers else b"")
        self.leases += leases

    @rule(
        rows=st.lists(st.tuples(st.sampled_from([0, 5, 9]), st.booleans()), min_size=1, max_size=4), n=st.integers(1, 4)
    )
    def defer_and_claim(self, rows: list[tuple[int, bool]], n: int) -> None:
        """In one turn: what is leased was never ready in the file."""
        tasks = [self.bench.task("a.one", priority=priority, body=b"x" * 2000 * large) for priority, large in rows]
        with self.bench.core.turn(self.bench.wall) as turn:
            turn.apply([self.bench.unit(tasks=tasks)])
            leases = turn.claim("a.one", n, "w1")
        self.model.defer(tasks)
        self._check_claim("a.one", "w1", leases, n, False)

    @precondition(lambda self: self.leases)
    @rule(
        data=st.data(),
        verdict=st.sampled_from(["done", "done", "retry", "dead", "release", "cancelled"]),
        delay=st.sampled_from([0.0, 6.0]),
        size=st.sampled_from([0, 1, 2048]),
    )
    def settle(self, data: st.DataObject, verdict: Verdict, delay: float, size: int) -> None:
        """Whatever lease was ever given, also long ago."""
        lease = self.leases[-1 - data.draw(st.integers(0, min(12, len(self.leases)) - 1))]
        result = msgspec.msgpack.encode("y" * size) if size else b""
        due_at = self.bench.wall + delay if delay else 0.0
        unit = Unit(self.bench.id(), settle=[Settlement(lease.id, lease.attempt, verdict, result, due_at)])
        [outcome] = self.bench.apply(unit)
        job = self.model.jobs[lease.id]
        if job.status == "running" and job.attempt == lease.attempt:
            assert outcome.error is None
            self.model.settle(job, verdict, due_at, result)
        elif job.status != "running" and job.settled == (lease.attempt, verdict):
            # What is long forgotten may be refused.
            assert outcome.error is None or job.proof_until_at <= self.model.wall
        else:
            assert outcome.error is not None
            assert isinstance(from_wire(outcome.error), LeaseLost)

    @rule(session=st.sampled_from(SESSIONS), lost=st.booleans(), keeps=st.booleans())
    def release(self, session: str, lost: bool, keeps: bool) -> None:
        held = [job for job in self.model.jobs.values() if job.session == session]
        held.sort(key=lambda job: job.age)
        kept = held[::2] if keeps else []
        keep = [(job.task.id, job.attempt) for job in kept]
        with self.bench.core.turn(self.bench.wall) as turn:
            strange = turn.release(session, keep=[*keep, ("nobody", 1)], lost=lost)
        assert strange == [("nobody", 1)]
        for job in held:
            if job not in kept:
                if lost:
                    self.model.lose(job)
                else:
                    job.tries -= 1
                    self.model.again(job, 0.0)

    @precondition(lambda self: self.model.jobs)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(sorted(self.model.jobs)))
        job = self.model.visible(id)
        if job is None:
            return
        with self.bench.core.turn(self.bench.wall) as turn:
            turn.cancel(id)
        if job.status == "running":
            job.asked = True
            assert turn.stopping == [(job.session, id, job.attempt)]
        elif job.status not in OVER:
            self.model.end(job, "cancelled")

    @rule(queue=st.sampled_from(QUEUES))
    def requeue(self, queue: str) -> None:
        with self.bench.core.turn(self.bench.wall) as turn:
            count = turn.requeue(queue)
        dead = [job for job in self.model.jobs.values() if job.task.queue == queue and job.status == "dead"]
        roots = [job for job in sorted(dead, key=lambda job: job.age) if not job.broken]
        for job in roots:
            self.model.requeue(job)
        assert count == len(roots)

    @precondition(lambda self: self.model.jobs)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(sorted(self.model.jobs)))
        job = self.model.jobs[id]
        with self.bench.core.turn(self.bench.wall) as turn:
            assert turn.drop(job.task.queue, [id]) == (job.status == "dead")
        if job.status == "dead":
            job.status = "gone"
            job.proof_until_at = self.model.wall + PROOF_S

    @rule(seconds=st.sampled_from([1.0, 4.0, 8.0, 700.0]))
    def wait(self, seconds: float) -> None:
        """Time passes: what is due becomes ready, what is over goes."""
        self.bench.wall += seconds
        self.model.wall += seconds
        due = [job for job in self.model.jobs.values() if job.status == "delayed" and job.due_at <= self.model.wall]
        first = self.bench.core.next_due()
        times = [job.due_at for job in self.model.jobs.values() if job.status == "delayed"]
        assert (first or math.inf) <= min(times, default=math.inf)
        assert self.bench.promote() == len(due)
        for job in due:
            job.status = "ready"
        while self.bench.sweep(3) == 3:
            pass

    @rule()
    def restart(self) -> None:
        self.bench.sound()

    @rule(queue=st.sampled_from(QUEUES))
    def fail(self, queue: str) -> None:
        """A turn that does a little of everything and then fails has done nothing."""
        before = memory(self.bench.core)
        infos = self._infos()
        with pytest.raises(ZeroDivisionError):
            self._everything_and_fail(queue)
        assert memory(self.bench.core) == before
        assert self._infos() == infos

    def _everything_and_fail(self, queue: str) -> None:
        with self.bench.core.turn(self.bench.wall) as turn:
            turn.apply([self.bench.unit(tasks=[self.bench.task(queue, order="o1"), self.bench.task(queue, key="k1")])])
            turn.apply([self.bench.unit(tasks=[self.bench.task("new.queue")])])
            leases = turn.claim(queue, 3, "w1")
            turn.apply([self.bench.unit(settle=[Settlement(lease.id, lease.attempt, "done") for lease in leases])])
            turn.release("w2", lost=True)
            turn.requeue(queue)
            turn.drop(queue)
            turn.promote()
            turn.sweep()
            raise ZeroDivisionError

    # --- looking -----------------------------------------------------------------------------------------

    def _infos(self) -> list[object]:
        return [self.bench.core.job(id, self.bench.wall) for id in sorted(self.model.jobs)]

    @invariant()
    def every_job_is_as_it_should_be(self) -> None:
        if not hasattr(self, "model"):
            return
        for id in self.model.jobs:
            job = self.model.visible(id)
            info = self.bench.core.job(id, self.bench.wall)
            assert (info is None) == (job is None), id
            if info is not None and job is not None:
                assert (info.status, info.attempt, info.lost, info.waits, info.worker, info.key, info.order) == (
                    job.status,
                    job.attempt,
                    job.lost,
                    job.waits,
                    job.session,
                    job.task.key,
                    job.task.order,
                ), id
                assert info.body == job.task.body

    @invariant()
    def every_count_is_right(self) -> None:
        if not hasattr(self, "model"):
            return
        for queue in self.bench.core.queues(self.bench.wall):
            jobs = [job for job in self.model.jobs.values() if job.task.queue == queue.name]
            for status in ("waiting", "delayed", "ready", "running", "dead"):
                ids = [job.task.id for job in jobs if job.status == status]
                assert getattr(queue, status) == len(ids)
                page = self.bench.core.jobs(queue.name, status, limit=1000, wall=self.bench.wall)  # type: ignore[arg-type]
                assert sorted(info.id for info in page) == sorted(ids)
            ready = [job for job in jobs if job.status == "ready"]
            suspects = sum(job.lost >= 2 for job in ready)
            core = self.bench.core
            assert (core.ready(queue.name), core.suspects(queue.name)) == (len(ready) - suspects, suspects)


TestModel = Machine.TestCase
TestModel.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
