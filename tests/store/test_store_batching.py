"""Units on their way to the store: gathered, sent again, and never ended with a wrong word."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import msgspec
import pytest

from mesh.calls.context import CURRENT
from mesh.calls.options import NO_OPTIONS, CallOptions
from mesh.clock import ManualClock
from mesh.engines.contract import Outcome, Unit
from mesh.engines.sqlite.batching import MOST_CALLS, MOST_UNITS, Batcher
from mesh.errors import (
    BadArguments,
    Conflict,
    LeaseLost,
    LinkLost,
    MeshError,
    Overloaded,
    RemoteError,
    Unavailable,
    Uncertain,
    UnknownService,
    Unwritable,
)
from mesh.tasks.contract import NewTask, Settlement

_units = msgspec.msgpack.Decoder(tuple[list[Unit]])
_pack = msgspec.msgpack.encode


class Asked:
    """A call that the store was asked."""

    def __init__(self, units: list[Unit], timeout: float, future: asyncio.Future[Any], decode: Any) -> None:
        self.units = units
        self.timeout = timeout
        self.future = future
        self.outer = CURRENT.get()
        self._decode = decode

    @property
    def ids(self) -> list[str]:
        return [unit.id for unit in self.units]

    def answer(self, *outcomes: Outcome) -> None:
        body = _pack(outcomes or [Outcome() for _ in self.units])
        self.future.set_result(self._decode(body, 0))

    def fail(self, error: MeshError) -> None:
        self.future.set_exception(error)


class FakeAsker:
    """Keeps what it is asked until a test answers."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []

    def call(
        self,
        target: str,
        body: bytes,
        encoding: int = 0,
        options: CallOptions = NO_OPTIONS,
        *,
        decode: Any = None,
    ) -> asyncio.Future[Any]:
        assert target == "mesh-store.apply"
        assert isinstance(options.timeout, float)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.asked.append(Asked(_units.decode(body)[0], options.timeout, future, decode))
        return future

    def stream(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError


class Bench:
    def __init__(self) -> None:
        self.asker = FakeAsker()
        self.clock = ManualClock()
        self.batcher = Batcher(self.asker, self.clock, random.Random(1))

    def commit(self, id: str, timeout_s: float = 10.0, **what: Any) -> asyncio.Future[Outcome]:
        return self.batcher.commit(Unit(id, **what), timeout_s)

    async def settle(self) -> None:
        await self.clock.advance(0.0)

    @property
    def asked(self) -> list[Asked]:
        return self.asker.asked


@pytest.fixture
async def bench() -> Bench:
    return Bench()


async def test_what_one_tick_brings_goes_in_one_call(bench: Bench) -> None:
    """A hundred callers, one message; each has its own outcome."""
    commits = [bench.commit(f"u{number}") for number in range(100)]
    await bench.settle()
    [asked] = bench.asked
    assert asked.ids == [f"u{number}" for number in range(100)]
    asked.answer(*(Outcome(offsets=[number]) for number in range(100)))
    outcomes = await asyncio.gather(*commits)
    assert [outcome.offsets for outcome in outcomes] == [[number] for number in range(100)]


async def test_a_flood_goes_in_several_calls_and_then_waits(bench: Bench) -> None:
    """Calls are bounded in size and in number; what waits goes along with the next answer."""
    commits = [bench.commit(f"u{number}") for number in range(MOST_UNITS * (MOST_CALLS + 2))]
    await bench.settle()
    assert [len(asked.units) for asked in bench.asked] == [MOST_UNITS] * MOST_CALLS
    bench.asked[0].answer()
    await bench.settle()
    assert len(bench.asked) == MOST_CALLS + 1
    for asked in bench.asked[1:]:
        asked.answer()
    await bench.settle()
    bench.asked[-1].answer()
    await asyncio.gather(*commits)


async def test_a_large_unit_goes_alone(bench: Bench) -> None:
    """Bytes bound a call as well."""
    big = [NewTask("t", "q", b"x" * 300_000)]
    commits = [bench.commit("small"), bench.commit("big", tasks=big), bench.commit("after")]
    await bench.settle()
    assert [asked.ids for asked in bench.asked] == [["small"], ["big"], ["after"]]
    for asked in bench.asked:
        asked.answer()
    await asyncio.gather(*commits)


async def test_a_lost_link_sends_the_same_units_again(bench: Bench) -> None:
    """The store knows what it has done already: nothing is lost, nothing is done twice."""
    commit = bench.commit("u1")
    await bench.settle()
    bench.asked[0].fail(LinkLost("gone"))
    await bench.settle()
    assert bench.asked[1].ids == ["u1"]
    bench.asked[1].answer()
    await commit


@pytest.mark.parametrize("error", [Unavailable("nobody"), Overloaded("full"), UnknownService("nobody yet")])
async def test_a_store_that_is_away_is_tried_again_until_the_time_is_over(bench: Bench, error: MeshError) -> None:
    """With pauses; and in the end the word is that nothing was done."""
    commit = bench.commit("u1", timeout_s=3.0)
    for _ in range(100):
        await bench.settle()
        if bench.asked and not bench.asked[-1].future.done():
            bench.asked[-1].fail(type(error)(error.message))
        await bench.clock.advance(0.05)
    assert 4 <= len(bench.asked) <= 20
    with pytest.raises(Unavailable, match="mesh store"):
        await commit


async def test_a_unit_that_may_have_been_done_ends_uncertain(bench: Bench) -> None:
    """After a lost link nobody knows; a later refusal does not change that."""
    commit = bench.commit("u1", timeout_s=2.0)
    await bench.settle()
    bench.asked[0].fail(LinkLost("gone"))
    await bench.settle()
    bench.asked[1].fail(Unavailable("nobody"))
    await bench.clock.advance(5.0)
    with pytest.raises(Uncertain) as caught:
        await commit
    assert type(caught.value) is Uncertain


async def test_an_answer_that_comes_too_late_is_nobodys(bench: Bench) -> None:
    """Each unit has its own time, whatever travels with it."""
    short, long = bench.commit("short", timeout_s=1.0), bench.commit("long", timeout_s=9.0)
    await bench.clock.advance(1.5)
    with pytest.raises(Uncertain):
        await short
    [asked] = bench.asked
    assert asked.timeout == pytest.approx(9.0)
    asked.answer()
    await long


async def test_outcomes_that_are_errors_are_raised_at_once(bench: Bench) -> None:
    """A full disk, a stale lease or etag: the same again would not help."""
    errors = [Unwritable("full"), LeaseLost("not yours"), Conflict("changed", details={"key": "k"})]
    commits = [bench.commit(f"u{number}") for number in range(4)]
    await bench.settle()
    bench.asked[0].answer(*(Outcome(error.to_wire()) for error in errors), Outcome())
    for error, commit in zip(errors, commits, strict=False):
        with pytest.raises(type(error)) as caught:
            await commit
        assert caught.value.details == error.details
    assert (await commits[3]).error is None
    assert len(bench.asked) == 1


async def test_a_store_that_fails_is_not_asked_again(bench: Bench) -> None:
    """What is nobody's passing trouble goes to whoever asked."""
    commit = bench.commit("u1")
    await bench.settle()
    bench.asked[0].fail(RemoteError("a bug", type_name="KeyError"))
    with pytest.raises(RemoteError):
        await commit


async def test_what_cannot_be_sent_is_refused_where_it_is_made(bench: Bench) -> None:
    """Before it can spoil the message of others."""
    with pytest.raises(BadArguments):
        bench.commit("u1", tasks=[object()])


async def test_a_handlers_deadline_bounds_its_own_commits_only(bench: Bench) -> None:
    """Deadlines shrink from hop to hop; but one message carries the units of many."""

    class Outer:
        target, caller, trace, meta = "a.b", "c", None, dict[str, str]()
        deadline_at = bench.clock.now() + 1.0

    token = CURRENT.set(Outer())
    hasty = bench.commit("hasty")
    acknowledgement = bench.commit("ack", settle=[Settlement("j", 1, "done")])
    CURRENT.reset(token)
    patient = bench.commit("patient")
    await bench.settle()
    [asked] = bench.asked
    assert asked.outer is None
    assert asked.timeout == pytest.approx(10.0)
    await bench.clock.advance(2.0)
    with pytest.raises(Uncertain):
        await hasty
    asked.answer()
    await asyncio.gather(acknowledgement, patient)


async def test_who_gives_up_before_it_is_sent_sends_nothing(bench: Bench) -> None:
    """A cancelled commit leaves the line."""
    gone, here = bench.commit("gone"), bench.commit("here")
    gone.cancel()
    await bench.settle()
    assert bench.asked[0].ids == ["here"]
    bench.asked[0].answer()
    await here


async def test_settlements_on_their_way_are_still_in_hand(bench: Bench) -> None:
    """A worker that attaches again must not be taken for one that has lost them."""
    commit = bench.commit("", settle=[Settlement("j1", 2, "done"), Settlement("j2", 1, "retry")])
    assert bench.batcher.unsettled() == [("j1", 2), ("j2", 1)]
    await bench.settle()
    assert bench.batcher.unsettled() == [("j1", 2), ("j2", 1)]
    bench.asked[0].answer()
    await commit
    assert bench.batcher.unsettled() == []


async def test_settlements_that_were_given_up_are_not_in_hand(bench: Bench) -> None:
    """Nobody will send them again: a lease that the store took for held would be held for ever."""
    commits = [bench.commit(f"u{number}", settle=[Settlement(f"j{number}", 1, "done")]) for number in range(2)]
    commits[0].cancel()
    assert bench.batcher.unsettled() == [("j1", 1)]
    await bench.settle()
    commits[1].cancel()
    assert bench.batcher.unsettled() == []
    bench.batcher.close()


async def test_closing_ends_everything(bench: Bench) -> None:
    """Nobody waits for an engine that is closed."""
    sent = bench.commit("sent")
    await bench.settle()
    waiting = bench.commit("waiting")
    bench.batcher.close()
    with pytest.raises(Uncertain):
        await sent
    with pytest.raises(Unavailable):
        await waiting
    with pytest.raises(Unavailable):
        await bench.commit("late")
