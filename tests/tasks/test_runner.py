"""From a lease to its acknowledgement, without any engine."""

from __future__ import annotations

import asyncio
import random
import sys
from typing import Any

import msgspec
import pytest

import mesh
from mesh.calls.offload import Offload
from mesh.clock import ManualClock, settle
from mesh.config.settings import TaskSettings
from mesh.errors import Conflict, LeaseLost, SetupError, TryLater, Uncertain
from mesh.tasks.contract import Lease
from mesh.tasks.runner import MOST_CONFLICTS, Runner
from mesh.telemetry.metrics import Recorder
from mesh.telemetry.traces import current as TRACE
from mesh.worker.workload import workload

pack = msgspec.msgpack.encode
#: Python 3.12 and later run the first step of a task at once.
EAGER = sys.version_info >= (3, 12)


class Work(mesh.Service):
    """Everything that a task may do."""

    def __init__(self) -> None:
        self.seen: list[object] = []
        self.clock: ManualClock
        self.stubborn = asyncio.Event()

    @mesh.task
    async def double(self, n: int) -> int:
        self.seen.append(n)
        return n * 2

    @mesh.task(retries=1, backoff="4s", timeout="10s", fatal=LookupError)
    async def fail(self, kind: str) -> None:
        self.seen.append(mesh.current_task().attempt)  # type: ignore[union-attr]
        raise {"value": ValueError("no"), "key": KeyError("gone"), "reject": mesh.Reject("never")}[kind]

    @mesh.task(timeout="10s", retries=0)
    async def sleep(self, seconds: float = 3600.0) -> str:
        self.seen.append("asleep")
        try:
            await self.clock.sleep(seconds)
        except asyncio.CancelledError:
            self.seen.append("stopped")
            raise
        return "slept"

    @mesh.task
    async def context(self, *, x: int = 0) -> dict[str, Any]:
        task = mesh.current_task()
        assert task is not None
        assert mesh.current() is task
        return {
            "job": task.job,
            "target": task.target,
            "attempt": task.attempt,
            "lost": task.lost,
            "key": task.key,
            "meta": task.meta,
            "left_s": task.deadline_at - self.clock.now(),
            "trace": TRACE.get(),
            "prior": task.prior,
            "topic": task.topic,
            "caller": task.caller,
            "x": x,
        }

    @mesh.task
    async def unsendable(self) -> Any:
        return object()

    @mesh.task
    async def blob(self) -> bytes:
        return b"\x00\x01"

    @mesh.task
    async def large(self, n: int) -> str:
        return "x" * n

    @mesh.task
    async def effects(self) -> str:
        self.seen.append("run")
        mesh.current_task().effects = ["something"]  # type: ignore[union-attr]
        return "done"

    @mesh.task(offload="thread")
    def in_thread(self, n: int) -> int:
        return n + 1

    @mesh.task
    def plain(self, n: int) -> int:
        return n + 2

    @mesh.task
    async def exits(self) -> None:
        raise asyncio.CancelledError


class Engine:
    """Acknowledgements as they come; errors to be raised for the next ones."""

    def __init__(self) -> None:
        self.settled = []
        self.committed = []
        self.errors: list[Exception] = []
        self.commit_errors: list[Exception] = []
        self.settle_calls = 0

    async def acknowledge(self, settlements, *, timeout_s):
        self.settle_calls += 1
        if self.errors:
            raise self.errors.pop(0)
        self.settled += settlements

    async def commit(self, settlement, effects, *, timeout_s):
        if self.commit_errors:
            raise self.commit_errors.pop(0)
        self.committed.append((settlement, effects))


class Bench:
    """A runner with everything that it needs."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.engine = Engine()
        self.work = Work()
        self.work.clock = self.clock
        self.recorder = Recorder(self.clock)
        self.offload = Offload(1, 1)
        load = workload([self.work], TaskSettings())
        self.runner = Runner(
            load.tasks,
            self.engine,
            clock=self.clock,
            offload=self.offload,
            recorder=self.recorder,
            rng=random.Random(1),
            identity="worker-1",
            max_result=1000,
        )

    def give(self, task, *args, id="j1", attempt=1, **fields):
        self.runner.leased([Lease(id, attempt, f"work.{task}", pack(args), **fields)])

    async def run(self, task, *args, **fields):
        """Run one lease; its settlement."""
        self.give(task, *args, **fields)
        await settle()
        return self.engine.settled[-1]

    def stats(self, task):
        return self.recorder.method("task", "work", task)


@pytest.fixture
async def bench():
    made = Bench()
    yield made
    await made.runner.close()
    await made.offload.close()
    assert made.runner.in_hand == 0


# --- what ends well ---------------------------------------------------------------------------------------


async def test_an_answer_is_kept_as_messagepack(bench):
    """So that it can become an argument of the next step; bytes as bytes, nothing as nil."""
    done = await bench.run("double", 21)
    assert (done.id, done.attempt, done.verdict, done.result) == ("j1", 1, "done", pack(42))
    assert (await bench.run("blob")).result == pack(b"\x00\x01")
    assert (await bench.run("plain", 1)).result == pack(3)
    assert bench.stats("double").count == 1
    assert bench.stats("double").in_flight == 0
    assert bench.runner.held() == []


async def test_a_thread_does_not_hold_up_the_loop(bench):
    """The drain waits for it, in real time: a pool has no other."""
    bench.give("in_thread", 1)
    await settle()
    await bench.runner.drain(60.0)
    assert bench.engine.settled[0].result == pack(2)


async def test_the_handler_knows_what_it_runs(bench):
    """Job, attempt, what travelled with it; the trace is in force, and nested calls inherit the deadline."""
    trace = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    done = await bench.run(
        "context", attempt=3, lost=1, key="k", meta={"m": "1"}, trace=trace, timeout_s=7.0, prior=pack([1, 2])
    )
    answer = msgspec.msgpack.decode(done.result)
    span = answer.pop("trace")
    assert (span[:36], span[52:]) == (trace[:36], trace[52:])
    assert span != trace
    assert answer == {
        "job": "j1",
        "target": "work.context",
        "attempt": 3,
        "lost": 1,
        "key": "k",
        "meta": {"m": "1"},
        "left_s": 7.0,
        "prior": [1, 2],
        "topic": "",
        "caller": "",
        "x": 0,
    }
    assert mesh.current_task(None) is None
    with pytest.raises(SetupError, match=r"current_task\(None\)"):
        mesh.current_task()


async def test_nothing_that_surrounds_the_push_reaches_the_handler(bench):
    """An engine may push from anywhere, also from within somebody's call."""
    TRACE.set("00-" + "c" * 32 + "-" + "d" * 16 + "-01")
    assert msgspec.msgpack.decode((await bench.run("context")).result)["trace"][3:35] != "c" * 32


async def test_what_one_tick_ends_is_acknowledged_together(bench):
    """One request for many."""
    for number in range(20):
        bench.give("double", number, id=f"j{number}")
    await settle()
    assert len(bench.engine.settled) == 20
    assert bench.engine.settle_calls == 1


# --- what ends badly --------------------------------------------------------------------------------------


async def test_a_failure_is_tried_again_after_a_wait(bench):
    """With what went wrong, for people."""
    failed = await bench.run("fail", "value")
    assert (failed.verdict, failed.reason, failed.error) == ("retry", "", "ValueError: no")
    assert "raise" in failed.traceback
    assert 2.0 <= failed.due_at - bench.clock.wall() <= 4.0
    assert bench.stats("fail").errors == {"handler_error": 1}


async def test_the_last_failure_is_dead(bench):
    """What counts is how often the handler failed, not the number of the attempt."""
    assert (await bench.run("fail", "value", attempt=9, tries=1)).verdict == "retry"
    dead = await bench.run("fail", "value", attempt=10, tries=2)
    assert (dead.verdict, dead.reason, dead.error) == ("dead", "failed", "ValueError: no")


@pytest.mark.parametrize("kind", ["key", "reject"])
async def test_what_is_fatal_is_dead_at_once(bench, kind):
    """By the decorator, or by the handler."""
    assert (await bench.run("fail", kind)).verdict == "dead"


async def test_arguments_that_do_not_fit_are_dead_without_running(bench):
    """Also those that are no MessagePack at all."""
    dead = await bench.run("double", "x")
    assert (dead.verdict, dead.reason) == ("dead", "undecodable")
    assert all(word in dead.error for word in ('"n"', "work.double"))
    bench.runner.leased([Lease("j2", 1, "work.double", b"\xc1")])
    await settle()
    assert bench.engine.settled[-1].reason == "undecodable"
    assert bench.work.seen == []
    assert bench.stats("double").in_flight == 0


async def test_a_task_that_nobody_here_knows_is_dead(bench):
    """An engine should not send it; it must not come again and again."""
    bench.runner.leased([Lease("j1", 1, "work.nothing", b"")])
    await settle()
    assert (bench.engine.settled[0].verdict, bench.engine.settled[0].reason) == ("dead", "unknown")
    assert all(word in bench.engine.settled[0].error for word in ("worker-1", "work.nothing"))


async def test_an_answer_that_cannot_be_kept_is_dead(bench):
    """Running it again would repeat its effects for nothing."""
    assert (await bench.run("unsendable")).verdict == "dead"


async def test_an_answer_that_is_too_large_is_dead(bench):
    """An engine would refuse it, again and again."""
    dead = await bench.run("large", 2000)
    assert dead.verdict == "dead"
    assert dead.error.startswith("TooLarge: work.large ")
    assert all(word in dead.error for word in ("2,003", "1,000"))


async def test_an_end_that_is_refused_ends_the_task_all_the_same(bench):
    """The lease would be held for ever."""
    bench.engine.errors = [mesh.BadRequest("not like this")]
    bench.give("double", 1)
    await settle()
    (dead,) = bench.engine.settled
    assert dead.verdict == "dead"
    assert all(word in dead.error for word in ("(done)", "not like this"))
    assert bench.runner.held() == []


async def test_a_cancellation_of_its_own_is_a_failure(bench):
    """Nobody asked for it."""
    assert (await bench.run("exits")).verdict == "retry"


# --- what is stopped --------------------------------------------------------------------------------------


async def test_an_attempt_has_its_time(bench):
    """Then it is stopped, and tried again or dead."""
    bench.give("sleep")
    await bench.clock.advance(9.9)
    assert bench.engine.settled == []
    await bench.clock.advance(0.2)
    (dead,) = bench.engine.settled
    assert (dead.verdict, dead.reason) == ("dead", "failed")
    assert dead.error.startswith("DeadlineExceeded: work.sleep: ")
    assert "10 s" in dead.error
    assert bench.work.seen == ["asleep", "stopped"]


async def test_the_deferrer_may_give_it_another_time(bench):
    """Longer or shorter than the decorator's."""
    bench.give("sleep", 15.0, timeout_s=20.0)
    await bench.clock.advance(16.0)
    assert bench.engine.settled[0].result == pack("slept")


async def test_a_cancelled_job_is_stopped(bench):
    """Only the attempt that is meant."""
    bench.give("sleep")
    await settle()
    bench.runner.cancel([("j1", 2), ("j2", 1)])
    await settle()
    assert bench.work.seen == ["asleep"]
    bench.runner.cancel([("j1", 1)])
    await settle()
    assert [one.verdict for one in bench.engine.settled] == ["cancelled"]
    assert bench.work.seen == ["asleep", "stopped"]


async def test_a_job_that_is_cancelled_in_the_tick_of_its_lease_does_not_go_on(bench):
    """It ends at its first wait at the latest."""
    bench.give("sleep")
    bench.runner.cancel([("j1", 1)])
    await settle()
    assert [one.verdict for one in bench.engine.settled] == ["cancelled"]
    assert bench.work.seen == (["asleep", "stopped"] if EAGER else [])


async def test_a_lost_lease_stops_the_handler_and_says_nothing(bench):
    """Somebody else runs it by now; an acknowledgement would be refused."""
    bench.give("sleep")
    await settle()
    assert bench.runner.held() == [("j1", 1)]
    bench.runner.lost("silence")
    assert bench.runner.held() == []
    await settle()
    assert bench.engine.settled == []
    assert bench.work.seen == ["asleep", "stopped"]
    assert bench.stats("sleep").in_flight == 0
    assert bench.stats("sleep").errors == {"lease_lost": 1}


async def test_a_lease_that_is_pushed_twice_runs_once(bench):
    """By an engine that was not sure."""
    bench.give("sleep")
    bench.give("sleep")
    await settle()
    assert bench.work.seen == ["asleep"]


# --- being heard ------------------------------------------------------------------------------------------


async def test_an_acknowledgement_is_repeated_until_it_is_heard(bench):
    """The work is done: it would be done again without it. Meanwhile the lease is in hand."""
    bench.engine.errors = [TryLater("away"), Uncertain("lost"), TryLater("away")]
    bench.give("double", 1)
    await settle()
    assert bench.runner.held() == [("j1", 1)]
    await bench.clock.advance(10.0)
    assert [one.verdict for one in bench.engine.settled] == ["done"]
    assert bench.runner.held() == []


async def test_a_refused_acknowledgement_harms_no_other(bench):
    """A stale lease among the others: all are refused together, then each is asked for alone."""
    bench.engine.errors = [LeaseLost("stale"), LeaseLost("stale")]
    for number in range(3):
        bench.give("double", number, id=f"j{number}")
    await settle()
    assert [one.id for one in bench.engine.settled] == ["j1", "j2"]
    assert bench.runner.held() == []


async def test_a_lost_lease_ends_the_repeating(bench):
    """There is nothing to be heard any more."""
    bench.engine.errors = [TryLater("away")] * 3
    bench.give("double", 1)
    await settle()
    bench.runner.lost("silence")
    calls = bench.engine.settle_calls
    await bench.clock.advance(60.0)
    assert bench.engine.settle_calls == calls
    assert bench.engine.settled == []


# --- effects ----------------------------------------------------------------------------------------------


async def test_effects_are_committed_with_the_acknowledgement(bench):
    """In one request, also when it has to be repeated; never the one without the other."""
    bench.engine.commit_errors = [Uncertain("lost"), TryLater("away")]
    bench.give("effects")
    await bench.clock.advance(10.0)
    ((settlement, effects),) = bench.engine.committed
    assert (settlement.verdict, effects) == ("done", ["something"])
    assert bench.work.seen == ["run"]
    assert bench.engine.settled == []


async def test_a_conflict_runs_the_handler_again_soon(bench):
    """On the same lease: somebody was faster, so it reads anew. It costs none of its retries."""
    bench.engine.commit_errors = [Conflict("etag"), Conflict("etag")]
    bench.give("effects")
    await bench.clock.advance(1.0)
    assert bench.work.seen == ["run"] * 3
    assert len(bench.engine.committed) == 1


async def test_conflicts_without_end_are_a_failure(bench):
    """Handlers that never fit together do not spin for ever."""
    bench.engine.commit_errors = [Conflict("etag")] * 1000
    bench.give("effects")
    await bench.clock.advance(30.0)
    assert len(bench.work.seen) == MOST_CONFLICTS
    assert [one.verdict for one in bench.engine.settled] == ["retry"]


async def test_effects_that_no_engine_takes_are_a_failure(bench):
    """Such as adding to what is no number."""
    bench.engine.commit_errors = [mesh.BadRequest("no number")]
    bench.give("effects")
    await settle()
    assert [(one.verdict, one.error) for one in bench.engine.settled] == [("retry", "BadRequest: no number")]


async def test_effects_of_a_lost_lease_are_gone(bench):
    """Nothing was written, and nothing is said."""
    bench.engine.commit_errors = [LeaseLost("stale")]
    bench.give("effects")
    await settle()
    assert bench.engine.settled == []
    assert bench.runner.held() == []


# --- leaving ----------------------------------------------------------------------------------------------


async def test_leaving_finishes_what_runs(bench):
    """And gives back at once what comes too late, or has not begun."""
    bench.give("sleep", 5.0)
    await settle()
    draining = asyncio.ensure_future(bench.runner.drain(8.0))
    await asyncio.sleep(0)  # it has begun
    bench.give("double", 1, id="late")
    await settle()
    bench.give("double", 1, id="later")
    await settle()
    assert [(one.id, one.verdict) for one in bench.engine.settled] == [("late", "release"), ("later", "release")]
    assert not draining.done()
    await bench.clock.advance(5.0)
    assert await draining is True
    assert bench.engine.settled[-1].verdict == "done"


async def test_what_is_not_done_in_time_runs_again_elsewhere(bench):
    """At once, and whatever its retries are: it is not the task's fault."""
    bench.give("sleep", timeout_s=60.0)
    await settle()
    draining = asyncio.ensure_future(bench.runner.drain(2.0))
    await bench.clock.advance(2.0)
    assert await draining is False
    await settle()
    assert [(one.verdict, one.due_at) for one in bench.engine.settled] == [("retry", 0.0)]


async def test_closing_waits_a_moment_for_the_acknowledgements(bench):
    """So that what was cut off need not wait for the lease to end."""
    bench.give("sleep")
    await settle()
    closing = asyncio.ensure_future(bench.runner.close(1.0))
    await settle()
    assert closing.done()
    assert [one.verdict for one in bench.engine.settled] == ["retry"]
