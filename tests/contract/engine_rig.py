"""The rig on which every engine is held to its contracts: processes that use it, workers played by hand, and time.

An engine joins by one more `Rig` in engine_kinds.py. A test asks the rig for engines (each as another process has it)
and for hands (workers that run nothing by themselves), turns the clock, and breaks things.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, ClassVar, TypeVar

import msgspec
import pytest

from mesh import ids
from mesh.clock import Clock, ManualClock, settle
from mesh.engines.contract import CAPABILITIES, Capability, Engine, Unit
from mesh.events.log import NewEvent
from mesh.state.contract import Write
from mesh.tasks.contract import JobInfo, Lease, NewTask, Offer, Queue, Session, Settlement, Status, Verdict

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., object])

#: Nothing here takes a second on an idle machine; this only turns a hang into a failure.
PATIENCE_S = 20.0
#: For every question to an engine.
T_S = 10.0


def over_processes(test: F) -> F:
    """Run this test also against engines that are processes of their own, whose start takes a while."""
    test.over_processes = True  # type: ignore[attr-defined]
    return test


def is_over_processes(test: object) -> bool:
    """Whether it is so decorated."""
    return getattr(test, "over_processes", False)


def needs(*capabilities: Capability) -> Callable[[F], F]:
    """What this test needs of an engine, instead of the NEEDS of its file; engines without it are left out."""

    def mark(test: F) -> F:
        test.needs = capabilities  # type: ignore[attr-defined]
        return test

    return mark


class Hand:
    """A worker in the hands of a test: it notes what it is given and told, and settles what the test says.

    Attributes:
        holding: leases that it has not settled, by (id, attempt).
        cancels: attempts that it was told to stop; lost_reasons: how often its leases were gone.
    """

    def __init__(self, rig: Rig, engine: Engine, name: str) -> None:
        self.rig = rig
        self.engine = engine
        self.name = name
        self.session: Session
        self.holding: dict[tuple[str, int], Lease] = {}
        self.cancels: list[tuple[str, int]] = []
        self.lost_reasons: list[str] = []
        self.history: list[tuple[str, int]] = []
        self._fresh: list[Lease] = []

    # --- what the engine calls

    def leased(self, leases: Sequence[Lease]) -> None:
        for lease in leases:
            self.holding[lease.id, lease.attempt] = lease
            self.history.append((lease.id, lease.attempt))
            self._fresh.append(lease)
            self.rig.began(self, lease)

    def cancel(self, jobs: Sequence[tuple[str, int]]) -> None:
        self.cancels.extend((id, attempt) for id, attempt in jobs)

    def lost(self, reason: str) -> None:
        self.holding.clear()
        self._fresh.clear()
        self.lost_reasons.append(reason)

    def held(self) -> Sequence[tuple[str, int]]:
        return tuple(self.holding)

    # --- what a test does

    async def take(self, count: int = 1) -> list[Lease]:
        """The next leases that it is given."""
        await self.rig.eventually(lambda: len(self._fresh) >= count, f"{count} leases for {self.name}")
        taken, self._fresh = self._fresh[:count], self._fresh[count:]
        return taken

    async def one(self) -> Lease:
        """The next lease."""
        return (await self.take())[0]

    async def nothing(self) -> bool:
        """Whether it is given nothing more now."""
        await self.rig.quiet()
        return not self._fresh

    async def settle(self, lease: Lease, verdict: Verdict = "done", **fields: Any) -> None:
        """Settle one lease."""
        await self.engine.leases.acknowledge([self.word(lease, verdict, **fields)], timeout_s=T_S)

    async def done(self, *leases: Lease, result: Any = None) -> None:
        """All of them are done."""
        answer = msgspec.msgpack.encode(result)
        await self.engine.leases.acknowledge(
            [self.word(lease, "done", result=answer) for lease in leases], timeout_s=T_S
        )

    async def retry(self, lease: Lease, after_s: float = 0.0) -> None:
        """It failed, and is tried again."""
        due_at = self.rig.clock.wall() + after_s if after_s else 0.0
        await self.settle(lease, "retry", due_at=due_at, reason="failed", error="it failed")

    async def dead(self, lease: Lease, error: str = "it failed for ever") -> None:
        """It failed, and is given up."""
        await self.settle(lease, "dead", reason="failed", error=error, traceback="Traceback …")

    def word(self, lease: Lease, verdict: Verdict = "done", **fields: Any) -> Settlement:
        """The settlement alone; from here on the lease is not in this hand any more."""
        self.holding.pop((lease.id, lease.attempt), None)
        return Settlement(lease.id, lease.attempt, verdict, **fields)

    async def run(self, count: int) -> list[Lease]:
        """Take and finish so many, one after the other; in the order in which they came."""
        ran: list[Lease] = []
        while len(ran) < count:
            lease = await self.one()
            await self.done(lease)
            ran.append(lease)
        return ran

    async def leave(self) -> None:
        """End the session in good order."""
        self.holding.clear()
        await self.session.close()


class Rig(ABC):
    """One engine under test.

    Attributes:
        kind: its name among the parameters.
        offers: the capabilities of its engine: tests that need others are not run with it.
        clock: what it lives by.
        lease_s, unknown_after_s, retention_s: what it was told.
        longest_s: how much time may pass in one test; little or none where it is real.
        step_s: by how much a hand-turned clock is turned at a time.
    """

    kind: ClassVar[str]
    offers: ClassVar[frozenset[Capability]] = frozenset(CAPABILITIES)
    longest_s: ClassVar[float] = 1e12
    step_s: ClassVar[float] = 0.1
    lease_s = 10.0
    unknown_after_s = 60.0
    retention_s = 7 * 86400.0

    def __init__(self) -> None:
        self.clock: Clock = ManualClock()
        self.hands: list[Hand] = []
        self._numbers = itertools.count(1)
        self._begun: dict[str, int] = {}
        self._passed_s = 0.0
        self._observer: Engine | None = None
        self._away: list[Engine] = []
        self._faults: list[str] = []

    # --- what each kind does in its way -------------------------------------------------------------------

    @abstractmethod
    async def start(self) -> None:
        """Set up, with nothing in it."""

    @abstractmethod
    async def engine(self) -> Engine:
        """The engine as one more process has it."""

    async def end_process(self, engine: Engine) -> None:
        """See `kill`."""
        pytest.skip(f"{self.kind}: this rig cannot kill a worker")

    async def part_process(self, engine: Engine) -> None:
        """See `cut`."""
        pytest.skip(f"{self.kind}: this rig cannot part processes")

    async def join_process(self, engine: Engine) -> None:
        """See `mend`."""
        pytest.skip(f"{self.kind}: this rig cannot part processes")

    async def restart(self) -> None:
        """End whatever keeps the data as kill -9 does, and start it again on the same data."""
        pytest.skip(f"{self.kind}: what it keeps does not outlive its process, by design")

    @abstractmethod
    async def close(self) -> None:
        """Leave nothing behind."""

    # --- what a test breaks -------------------------------------------------------------------------------

    async def kill(self, engine: Engine) -> None:
        """End the process that has this engine as kill -9 does."""
        self._away.append(engine)
        await self.end_process(engine)

    async def cut(self, engine: Engine) -> None:
        """Part the process that has it from the rest."""
        self._away.append(engine)
        await self.part_process(engine)

    async def mend(self, engine: Engine) -> None:
        """End a `cut`."""
        self._away.remove(engine)
        await self.join_process(engine)

    # --- what a test asks for -----------------------------------------------------------------------------

    def together(self, engine: Engine, *capabilities: Capability) -> None:
        """Skip where it cannot commit them together."""
        if apart := [each for each in capabilities if each not in engine.together]:
            pytest.skip(f"{engine.name} does not commit {', '.join(apart)} together with others")

    async def observer(self) -> Engine:
        """An engine to look with, always the same."""
        if self._observer is None:
            self._observer = await self.engine()
        return self._observer

    async def hand(
        self,
        *queues: str | Queue,
        credit: int = 10,
        engine: Engine | None = None,
        services: Iterable[str] = (),
        **said: Any,
    ) -> Hand:
        """One more worker, in a process of its own unless an engine is given; `said` of each queue that is a name."""
        engine = engine or await self.engine()
        all_queues = tuple(Queue(each, credit, **said) if isinstance(each, str) else each for each in queues)
        hand = Hand(self, engine, f"worker-{next(self._numbers)}@1")
        known = tuple(services) or tuple({queue.name.rpartition(".")[0] for queue in all_queues})
        self.hands.append(hand)
        hand.session = await engine.leases.subscribe(Offer(hand.name, known, all_queues), hand)
        return hand

    def task(self, queue: str = "mail.send", body: Any = None, **fields: Any) -> NewTask:
        """A task that is not deferred yet."""
        return NewTask(ids.job_id(), queue, msgspec.msgpack.encode(body), **fields)

    def tasks(self, count: int, queue: str = "mail.send", **fields: Any) -> list[NewTask]:
        """Some, whose bodies count from 0."""
        return [self.task(queue, number, **fields) for number in range(count)]

    def event(self, topic: str = "order.created", body: Any = None, **fields: Any) -> NewEvent:
        """An event that is not appended yet."""
        fields.setdefault("at", self.clock.wall())
        return NewEvent(ids.job_id(), topic, msgspec.msgpack.encode(body), **fields)

    def put(self, key: str, value: Any = None, *, namespace: str = "carts", **fields: Any) -> Write:
        """A write of state that is not asked for yet."""
        return Write(namespace, key, "set", ids.etag(), value=msgspec.msgpack.encode(value), **fields)

    def unit(self, **parts: Any) -> Unit:
        return Unit(ids.job_id(), **parts)

    async def defer(self, *tasks: NewTask, engine: Engine | None = None) -> list[str]:
        """Defer them in one commit; their ids."""
        engine = engine or await self.observer()
        return [ticket.id for ticket in await engine.queues.defer(tasks, timeout_s=T_S)]

    async def status(self, engine: Engine, id: str) -> Status | None:
        """None when the job is not known."""
        job = await engine.jobs.find(id, timeout_s=T_S)
        return job.status if job is not None else None

    async def until_status(self, engine: Engine, id: str, status: Status | None) -> JobInfo | None:
        """Wait for a job to have a status; None: to be forgotten."""
        job: JobInfo | None = None

        async def there() -> bool:
            nonlocal job
            job = await engine.jobs.find(id, timeout_s=T_S)
            return (job.status if job is not None else None) == status

        await self.eventually(there, f"status {status} of job {id}")
        return job

    # --- time ---------------------------------------------------------------------------------------------

    async def pass_time(self, seconds: float) -> None:
        """Let time pass, and everything happen that is due meanwhile."""
        self._passed_s += seconds
        if self._passed_s > self.longest_s:
            pytest.skip(f"{self.kind}: its clock cannot be turned, and this takes {self._passed_s:g} s")
        if isinstance(self.clock, ManualClock):
            # In steps, as time does pass: whoever must say in time that he lives can do so.
            end = self.clock.now() + seconds
            while (left := end - self.clock.now()) > 1e-9:
                self.clock.turn(min(self.step_s, left))
                await settle()
        else:
            await asyncio.sleep(seconds)
        await self.quiet()

    async def soon(self, awaited: Awaitable[T]) -> T:
        """Wait for what may need a little time of the clock: to find somebody, or to try again."""
        waiting = asyncio.ensure_future(awaited)
        give_up_at = time.monotonic() + PATIENCE_S
        turns = 0
        while not waiting.done():
            await self._breathe()
            turns += 1
            # What needs no time has happened after some turns.
            if isinstance(self.clock, ManualClock) and turns > 20:
                await self.clock.advance(0.02)
            if time.monotonic() > give_up_at:
                waiting.cancel()
                await asyncio.gather(waiting, return_exceptions=True)
                pytest.fail(f"never came: {awaited!r}")
        return waiting.result()

    async def leap(self, seconds: float) -> None:
        """Let much time pass at once, while nobody is attached."""
        if not isinstance(self.clock, ManualClock):
            pytest.skip(f"{self.kind}: its clock cannot be turned, and this takes {seconds:g} s")
        self.clock._now += seconds
        await self.pass_time(self.lease_s * 2)

    async def quiet(self) -> None:
        """Return when what needs no time to pass has happened."""
        for _ in range(3):
            await settle()

    async def eventually(self, condition: Callable[[], object | Awaitable[object]], what: str) -> None:
        """Return once `condition()` is true; fail with `what` when patience ends. No time of the clock passes."""
        give_up_at = time.monotonic() + PATIENCE_S
        while True:
            met = condition()
            if await met if isinstance(met, Awaitable) else met:
                return
            if time.monotonic() > give_up_at:
                pytest.fail(f"never happened: {what}")
            await self._breathe()

    async def _breathe(self) -> None:
        if isinstance(self.clock, ManualClock):
            await settle(2)
        else:
            await asyncio.sleep(0.001)

    # --- what holds in every test -------------------------------------------------------------------------

    def began(self, hand: Hand, lease: Lease) -> None:
        """A lease was given. An engine swallows what its receivers raise, so that faults are told by `check`."""
        before = self._begun.get(lease.id, 0)
        if lease.attempt <= before:
            self._faults.append(f"attempt {lease.attempt} of {lease.id} came after attempt {before}")
        self._begun[lease.id] = lease.attempt
        for other in self.hands:
            if other is not hand and other.engine not in self._away and any(id == lease.id for id, _ in other.holding):
                self._faults.append(f"{hand.name} was given {lease.id} while {other.name} held it")

    def check(self) -> None:
        """Every attempt of a job had a larger number than those before, and nobody else held it then."""
        assert self._faults == []
