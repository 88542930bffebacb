"""Group commit: what is done together, what is answered when, and what follows when a turn fails."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest
from store_core import FakeCore

from mesh.clock import ManualClock
from mesh.engines.contract import Unit
from mesh.engines.sqlite.disk import Damaged
from mesh.errors import BadRequest, Overloaded, RemoteError, Unavailable, Unwritable
from mesh.store.backlog import WORTH_HALVING
from mesh.store.dispatch import Dispatch
from mesh.store.turns import PAUSE_S, SAY_AGAIN_S, Turns
from mesh.tasks.contract import Lease, NewTask, Queue, Settlement
from mesh.telemetry import logs


class Told:
    """What is told after turns."""

    def __init__(self) -> None:
        self.leases: list[tuple[str, str]] = []
        self.jobs: list[str] = []
        self.error: Damaged | None = None

    def leased(self, session: str, leases: list[Lease]) -> None:
        self.leases += [(session, lease.id) for lease in leases]

    def stopping(self, session: str, id: str, attempt: int) -> None: ...

    def over(self, jobs: Sequence[str]) -> None:
        self.jobs += jobs

    def damaged(self, error: Damaged) -> None:
        self.error = error


class Store:
    """Turns over a fake core."""

    def __init__(self, backlog: int = 100_000) -> None:
        self.core = FakeCore()
        self.clock = ManualClock()
        self.dispatch = Dispatch()
        self.told = Told()
        core: Any = self.core
        self.turns = Turns(core, self.clock, self.dispatch, self.told, (), backlog=backlog)


@pytest.fixture
async def store() -> Store:
    return Store()


def units(*names: str) -> list[Unit]:
    return [Unit(name) for name in names]


def task(id: str) -> Unit:
    return Unit(id, tasks=[NewTask(id, "a", b"")])


async def test_what_comes_in_one_tick_is_one_commit(store: Store) -> None:
    """Many callers, one transaction; each gets its own outcomes."""
    answers = [store.turns.apply(units(f"u{number}", f"v{number}")) for number in range(50)]
    outcomes = await asyncio.gather(*answers)
    assert store.core.commits == 1
    assert [len(each) for each in outcomes] == [2] * 50
    assert store.core.units[:4] == ["u0", "v0", "u1", "v1"]


async def test_a_crowd_that_comes_at_once_is_done_in_two_turns(store: Store) -> None:
    """The first half is answered before the second is begun, so that it can ask again meanwhile; few go together."""
    halves = [[task(f"{half}{number}") for number in range(WORTH_HALVING // 2)] for half in "ab"]
    first, second = (store.turns.apply(half) for half in halves)
    await first
    assert (store.core.commits, second.done()) == (1, False)
    await asyncio.sleep(0)
    assert store.core.commits == 1, "what the first half is told is sent before the next turn blocks the loop"
    await second
    assert store.core.commits == 2
    await asyncio.gather(*(store.turns.apply(half[1:]) for half in halves))
    assert store.core.commits == 3


async def test_nothing_is_answered_before_the_commit(store: Store) -> None:
    """Neither callers nor workers hear of what is not durable."""
    store.dispatch.attach("w", [Queue("a", 5)], 0.0)
    store.dispatch.open("w")
    store.core.fails = Unwritable("the disk is full")
    answer = store.turns.apply([task("t1")])
    [outcome] = await answer
    assert outcome.error is not None
    assert outcome.error["code"] == "unwritable"
    assert store.core.units == []
    assert store.told.leases == []


async def test_a_refused_unit_does_not_touch_its_neighbours(store: Store) -> None:
    """Its outcome is an error, theirs are not."""
    store.core.refused = {"bad"}
    good, bad, also_good = await store.turns.apply(units("good", "bad", "also good"))
    assert good.error is None
    assert also_good.error is None
    assert bad.error is not None
    assert bad.error["code"] == "bad_request"


async def test_leases_follow_a_commit_and_settling_makes_room_in_the_same_turn(store: Store) -> None:
    """A worker whose task is settled has its next one from the very same commit."""
    store.dispatch.attach("w", [Queue("a", 1)], 0.0)
    store.dispatch.open("w")
    await store.turns.apply([task("t1"), task("t2")])
    assert store.told.leases == [("w", "t1")]
    commits = store.core.commits
    await store.turns.apply([Unit("", settle=[Settlement("t1", 1, "done")])])
    assert store.told.leases == [("w", "t1"), ("w", "t2")]
    assert store.told.jobs == ["t1"]
    assert store.core.commits == commits + 1


async def test_a_full_disk_leaves_credit_as_it_was_and_work_goes_on_by_itself(store: Store) -> None:
    """What a failed turn would have given is still there, and is given when the disk takes it again."""
    await store.turns.apply([task("t1"), task("t2")])
    store.dispatch.attach("w", [Queue("a", 1)], 0.0)
    store.dispatch.open("w")
    store.core.fails = Unwritable("the disk is full")
    store.turns.wake()
    await store.clock.advance(0.0)
    assert store.told.leases == []
    assert store.turns.trouble == "the disk is full"
    failures = store.turns.figures.failures
    await store.clock.advance(PAUSE_S * 4)
    assert failures < store.turns.figures.failures < failures + 6
    store.core.fails = None
    await store.clock.advance(PAUSE_S)
    assert store.told.leases == [("w", "t1")]
    assert store.turns.trouble == ""


async def test_a_disk_that_flaps_is_logged_at_most_once_in_ten_seconds(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that is nearly full takes one write and refuses the next, many times a second."""

    async def flap() -> None:
        store.core.fails = Unwritable("the disk is full")
        assert (await store.turns.apply([task("t1")]))[0].error is not None
        store.core.fails = None
        await store.turns.apply([task("t2")])

    logs.configure("info", "json")
    try:
        for _ in range(20):
            await flap()
        await store.clock.advance(SAY_AGAIN_S)
        await flap()
    finally:
        logs.reset()
    events = [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()]
    assert events == ["store.read_only", "store.writable"] * 2


async def test_a_turn_that_cannot_even_begin_is_told_to_everybody(store: Store) -> None:
    """A read-only disk: nobody waits for it, and nothing spins."""
    store.core.fails, store.core.fails_at = Unwritable("read-only"), "begin"
    first, deed, second = (
        store.turns.apply(units("a", "b")),
        store.turns.do(lambda turn: 1),
        store.turns.apply(units("c")),
    )
    for answer, count in ((first, 2), (second, 1)):
        assert [outcome.error["code"] for outcome in await answer if outcome.error] == ["unwritable"] * count
    with pytest.raises(Unwritable):
        await deed
    assert store.turns.waiting == 0
    assert store.turns.figures.failures < 4
    store.core.fails = None
    assert [outcome.error for outcome in await store.turns.apply(units("d"))] == [None]


async def test_one_unit_that_breaks_the_core_costs_nobody_else(store: Store) -> None:
    """A fault that nobody foresaw ends in the answer of the one that has it."""
    store.core.poison = {"u7"}
    answers = [store.turns.apply(units(f"u{number}")) for number in range(20)]
    outcomes = await asyncio.gather(*answers)
    errors = [number for number, [outcome] in enumerate(outcomes) if outcome.error is not None]
    assert errors == [7]
    assert sorted(store.core.units) == sorted(f"u{number}" for number in range(20) if number != 7)
    assert store.turns.waiting == 0


async def test_one_deed_that_breaks_costs_nobody_else(store: Store) -> None:
    """The same for what is no unit; an error that is meant is no fault at all."""

    def broken(turn: Any) -> None:
        raise RuntimeError("a bug")

    def refused(turn: Any) -> None:
        raise BadRequest("no")

    fault, fine, no = store.turns.do(broken), store.turns.do(lambda turn: 5), store.turns.do(refused)
    beside = store.turns.apply(units("u"))
    with pytest.raises(RemoteError, match="a bug"):
        await fault
    assert await fine == 5
    with pytest.raises(BadRequest):
        await no
    assert [outcome.error for outcome in await beside] == [None]


async def test_more_than_the_backlog_is_refused_at_once() -> None:
    """Waiting longer than the disk takes helps nobody."""
    store = Store(backlog=10)
    first = store.turns.apply(units(*(f"u{number}" for number in range(10))))
    with pytest.raises(Overloaded, match="backlog"):
        store.turns.apply(units("one more"))
    await first
    await store.turns.apply(units("one more"))


async def test_a_turn_is_bounded_and_a_large_batch_takes_several(store: Store) -> None:
    """Between two turns the loop reads its sockets; the answer comes when the last of the batch is durable."""
    many = [f"u{number}" for number in range(10_000)]
    big = store.turns.apply(units(*many[:9000]))
    small = store.turns.apply(units(*many[9000:]))
    assert len(await big) == 9000
    assert len(await small) == 1000
    assert store.core.units == many
    assert store.core.commits >= 3


async def test_a_batch_over_several_turns_tells_which_of_it_failed(store: Store) -> None:
    """What was durable before the disk was full stays done, and says so."""
    many = units(*(f"u{number}" for number in range(6000)))
    answer = store.turns.apply(many)
    while not store.core.commits:  # noqa: ASYNC110  # nothing announces it
        await asyncio.sleep(0)
    store.core.fails = Unwritable("full")
    outcomes = await answer
    done = [outcome for outcome in outcomes if outcome.error is None]
    assert 0 < len(done) < 6000
    assert len(outcomes) == 6000
    assert len(store.core.units) == len(done)
    assert outcomes[: len(done)] == done


async def test_a_damaged_file_stops_everything(store: Store) -> None:
    """Whoever asked is told, and whoever owns the process too."""
    store.core.fails = Damaged("page 7 is not what it was")
    [outcome] = await store.turns.apply(units("u"))
    assert outcome.error is not None
    assert outcome.error["code"] == "damaged_file"
    assert store.told.error is not None


async def test_after_the_end_there_are_no_turns(store: Store) -> None:
    """Who still asks is told to look elsewhere."""
    waiting = store.turns.apply(units("u"))
    store.turns.close()
    with pytest.raises(Unavailable):
        await waiting
    with pytest.raises(Unavailable):
        await store.turns.apply(units("v"))
    assert store.core.commits == 0


async def test_asking_for_the_longest_turn_changes_nothing(store: Store) -> None:
    """It is that of the last minute, however often and by whomever it is asked for."""
    figures = store.turns.figures
    for at, seconds in ((100.0, 0.2), (101.0, 0.5), (102.0, 0.1), (130.0, 0.3)):
        figures.took(seconds, at)
    assert [figures.longest_s(now) for now in (130.0, 130.0, 155.0)] == [0.5, 0.5, 0.5]
    assert [figures.longest_s(now) for now in (165.0, 180.0, 250.0)] == [0.3, 0.3, 0.0]
    assert figures.total_s == pytest.approx(1.1)
