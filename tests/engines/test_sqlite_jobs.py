"""Jobs in the SQLite core: what the contract's suites do not see of rows, sizes, pages of lists and moves."""

from __future__ import annotations

import itertools
from typing import get_args

import msgspec
import pytest
from sqlite_bench import QUEUE, Bench, memory

from mesh.engines.contract import Unit
from mesh.engines.sqlite.status import CODES, FORGOTTEN, MOVES, NAMES, PROOF_S, STATUSES, VERDICTS
from mesh.errors import BadRequest, LeaseLost
from mesh.schedules.contract import Advance, Schedule
from mesh.tasks.contract import OVER, Queue, Settlement, Status, Ticket, Verdict


def rows(bench: Bench, table: str) -> int:
    assert bench.core._connection is not None
    return int(bench.core._connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


# --- statuses ----------------------------------------------------------------------------------------------


def test_the_table_of_moves_fits_the_contract() -> None:
    """Every status and verdict has a number, and what is over only comes back by being requeued, or goes."""
    assert set(NAMES) == set(get_args(Status)) == set(CODES)
    assert set(VERDICTS) == set(get_args(Verdict))
    assert len(NAMES) == FORGOTTEN == STATUSES - 1
    over = {CODES[name] for name in OVER}
    back = {(before, after) for before, after in MOVES if before in over and after not in {*over, FORGOTTEN}}
    assert back == {(CODES["dead"], CODES["ready"]), (CODES["dead"], CODES["waiting"])}
    assert not any(before == FORGOTTEN for before, _ in MOVES)


# --- leased before it is written ----------------------------------------------------------------------------


def test_what_a_turn_makes_it_may_lease(bench: Bench) -> None:
    """By priority, then age; the rest is ready, and after a restart everything is as it was told."""
    with bench.core.turn(bench.wall) as turn:
        tasks = [bench.task(body=b"%d" % priority, priority=priority) for priority in (1, 5, 9, 5)]
        turn.apply([bench.unit(tasks=[task]) for task in tasks])
        leases = turn.claim(QUEUE, 2, "w1")
        leases += turn.claim(QUEUE, 1, "w2")
        assert turn.woken == {QUEUE}
    assert [lease.body for lease in leases] == [b"9", b"5", b"5"]
    assert [(lease.attempt, lease.tries) for lease in leases] == [(1, 1)] * 3
    assert bench.core.ready(QUEUE) == 1
    bench.sound()
    assert {session: len(held) for session, held in bench.core.held().items()} == {"w1": 2, "w2": 1}
    bench.settle(*leases)
    assert bench.one().body == b"1"


def test_an_older_task_in_the_file_goes_before_a_new_one(bench: Bench) -> None:
    """And a new one with a higher priority before an older one."""
    old = bench.defer(bench.task(), bench.task())
    with bench.core.turn(bench.wall) as turn:
        new = [bench.task(), bench.task(priority=9)]
        turn.apply([bench.unit(tasks=new)])
        leases = turn.claim(QUEUE, 3, "w1")
    assert [lease.id for lease in leases] == [new[1].id, *old]


@pytest.mark.parametrize("size", [0, 1, 1023, 1024, 1025, 100_000])
@pytest.mark.parametrize("at_once", [False, True])
def test_bodies_and_answers_of_any_size(bench: Bench, size: int, at_once: bool) -> None:
    """They come back as they were given; what had a row of its own leaves none behind."""
    task = bench.task(body=b"b" * size, keep_s=5.0)
    with bench.core.turn(bench.wall) as turn:
        turn.apply([bench.unit(tasks=[task])])
        leases = turn.claim(QUEUE, 1, "w1") if at_once else []
    [lease] = leases or bench.claim()
    assert lease.body == task.body
    bench.settle(lease, verdict="retry", error="e", traceback="t")
    bench.reopen()
    bench.settle(bench.one(), result=b"r" * size)
    info = bench.job(task.id)
    assert (info.body, info.result, info.error) == (task.body, b"r" * size, "")
    bench.wall += 5.0 + PROOF_S
    while bench.sweep():
        pass
    assert [rows(bench, table) for table in ("tasks", "blobs", "failures", "priors")] == [0, 0, 0, 0]


@pytest.mark.parametrize("keep_s", [60.0, 0.0])
def test_each_job_gets_its_own_answer_when_many_end_at_once(bench: Bench, keep_s: float) -> None:
    """Those with equal answers end by one statement: it changes these rows and no others."""
    ids = bench.defer(*(bench.task(keep_s=keep_s) for _ in range(100)))
    leases = bench.claim(90)
    answers = [b"\xc0", b"\xc3", b"", b"r" * 2000]
    given = {lease.id: answers[at % 4] if at % 2 else bytes([at]) for at, lease in enumerate(leases[:80])}
    bench.commit(settle=[bench.word(lease, result=given[lease.id]) for lease in leases[:80]])
    expected = {**{id: ("done", given[id]) for id in ids[:80]}, **dict.fromkeys(ids[80:90], ("running", b""))}
    for id in ids:
        info = bench.core.job(id, bench.wall, forgotten=True)
        assert info is not None
        assert (info.status, info.result) == expected.get(id, ("ready", b""))
    bench.sound()


def test_everything_that_was_deferred_is_leased(bench: Bench) -> None:
    """Whether the task is a plain one or has something special, from the file and before."""
    special = {"trace": "00-1-2-01", "meta": {"a": "b"}, "timeout_s": 2.5, "key": "k", "keep_s": 7.0}
    for names in [(), *itertools.combinations(special, 1), tuple(special)]:
        fields = {name: special[name] for name in names}
        for at_once in (False, True):
            task = bench.task(**{**fields, "key": f"{at_once}{names}"} if "key" in fields else fields)
            with bench.core.turn(bench.wall) as turn:
                turn.apply([bench.unit(tasks=[task])])
                leases = turn.claim(QUEUE, 1, "w1") if at_once else []
            [lease] = leases or bench.claim()
            assert (lease.key, lease.trace, lease.meta, lease.timeout_s) == (
                task.key,
                task.trace,
                task.meta,
                task.timeout_s,
            )
            assert lease.created_at == bench.wall
            bench.settle(lease)
            assert bench.job(task.id).ends_at == bench.wall + task.keep_s


# --- what is refused ----------------------------------------------------------------------------------------

BAD_TASKS = {
    "no id": {"id": " \n"},
    "a long id": {"id": "x" * 2000},
    "no service": {"queue": "send"},
    "no priority": {"priority": 10},
    "no instant": {"due_at": float("nan")},
    "an endless delay": {"due_at": float("inf")},
    "a negative time to live": {"keep_s": -1.0},
    "no time": {"timeout_s": float("nan")},
    "a long key": {"key": "k" * 2000},
    "a long order": {"order": "o" * 2000},
    "nobody to wait for": {"waits": 1},
    "nobody to feed": {"feeds": "somebody"},
}


@pytest.mark.parametrize("fields", BAD_TASKS.values(), ids=BAD_TASKS)
def test_a_task_that_cannot_be_kept_is_refused(bench: Bench, fields: dict[str, object]) -> None:
    """With its unit, before anything is written; what came in the same turn is not touched."""
    before = memory(bench.core)
    good, bad = bench.unit(tasks=[bench.task()]), bench.unit(tasks=[bench.task(), bench.task(**fields)])
    with bench.core.turn(bench.wall) as turn:
        fine, refused = turn.apply([good, bad])
        assert fine.error is None
        assert refused.error is not None
        assert refused.error["status"] == 400
    assert memory(bench.core) != before
    assert bench.core.ready(QUEUE) == 1
    bench.sound()


def test_one_id_is_one_task(bench: Bench) -> None:
    """A unit that has it twice is refused."""
    assert isinstance(bench.refused(tasks=[bench.task(id="same"), bench.task(id="same")]), BadRequest)
    assert bench.core.names() == []


def test_a_settlement_that_says_nothing_is_refused(bench: Bench) -> None:
    """A verdict that is none, an instant that is none."""
    bench.defer(bench.task())
    lease = bench.one()
    for word in (Settlement(lease.id, 1, "maybe"), Settlement(lease.id, 1, "retry", due_at=float("nan"))):  # type: ignore[arg-type]
        assert isinstance(bench.refused(settle=[word]), BadRequest)
    assert bench.status(lease.id) == "running"


# --- units that come again ----------------------------------------------------------------------------------


def test_a_unit_that_comes_again_in_the_same_turn_is_the_same(bench: Bench) -> None:
    """Two that are alike in one batch, or in two."""
    unit = bench.unit(tasks=[bench.task(key="k")], events=[bench.event()], writes=[bench.write("n", "add", by=1)])
    with bench.core.turn(bench.wall) as turn:
        first, second = turn.apply([unit, unit])
        [third] = turn.apply([unit])
    assert first == second == third
    assert bench.core.ready(QUEUE) == 1


def test_settlements_without_a_unit_are_each_their_own(bench: Bench) -> None:
    """The id "" is nobody's: a thousand of them in one turn are a thousand."""
    bench.defer(*(bench.task() for _ in range(5)))
    leases = bench.claim()
    outcomes = bench.apply(*(Unit("", settle=[bench.word(lease)]) for lease in leases))
    assert [outcome.error for outcome in outcomes] == [None] * 5
    assert bench.core.queues(bench.wall)[0].done == 5


def test_what_proves_a_unit_is_kept_for_ten_minutes(bench: Bench) -> None:
    """Whatever was to be kept, whatever people dropped: who asks again is told the same, and nothing runs."""
    plain = bench.unit(tasks=[bench.task(keep_s=0.0)])
    keyed = bench.unit(tasks=[bench.task(key="k", keep_s=0.0), bench.task(key="k", keep_s=0.0)])
    dropped = bench.unit(tasks=[bench.task("dead.letters")])
    units = [plain, keyed, dropped]
    first = [msgspec.msgpack.encode(outcome) for outcome in bench.apply(*units)]
    done = [bench.unit(settle=[bench.word(lease)]) for lease in bench.claim()]
    bench.apply(*done)
    bench.settle(bench.one(queue="dead.letters"), verdict="dead")
    with bench.core.turn(bench.wall) as turn:
        assert turn.drop("dead.letters") == 1
    for _ in range(6):
        bench.wall += 99.0
        while bench.sweep():
            pass
        assert [msgspec.msgpack.encode(outcome) for outcome in bench.apply(*units)] == first
        assert [outcome.error for outcome in bench.apply(*done)] == [None, None]
        assert [queue for queue in bench.core.queues(bench.wall) if queue.ready] == []
        assert bench.status(plain.tasks[0].id) is None
    bench.wall += 99.0
    while bench.sweep():
        pass
    assert [rows(bench, table) for table in ("tasks", "units")] == [0, 0]


def test_a_unit_that_comes_again_after_a_requeue_is_known(bench: Bench) -> None:
    """Though the attempt that it buried has a successor."""
    bench.defer(bench.task())
    lease = bench.one()
    unit = bench.unit(settle=[bench.word(lease, "dead", error="e")])
    [first] = bench.apply(unit)
    with bench.core.turn(bench.wall) as turn:
        turn.requeue(QUEUE)
    again = bench.one()
    assert (again.attempt, again.tries) == (2, 1)
    assert bench.apply(unit) == [msgspec.structs.replace(first, tickets=[], offsets=[], entries=[])]
    assert bench.status(lease.id) == "running"
    assert isinstance(bench.refused(settle=[bench.word(lease, "dead")]), LeaseLost)


def test_an_advance_is_done_once(bench: Bench) -> None:
    """With the task that it makes, by whoever is first; the others are told so."""
    with bench.core.turn(bench.wall) as turn:
        turn.declare_schedules([Schedule("a.daily", "0 3 * * *", "once", 100.0)])
    units = [
        bench.unit(advance=[Advance("a.daily", 100.0, 200.0)], tasks=[bench.task("a.daily", key="200")])
        for _ in range(3)
    ]
    outcomes = bench.apply(*units)
    assert [outcome.error and outcome.error["code"] for outcome in outcomes] == [None, "conflict", "conflict"]
    assert outcomes[0].tickets == [Ticket(units[0].tasks[0].id)]
    assert bench.apply(units[0])[0].error is None
    assert bench.core.schedules()[0].last_at == 200.0
    assert bench.core.ready("a.daily") == 1


# --- lists --------------------------------------------------------------------------------------------------


def pages(bench: Bench, status: Status, limit: int) -> list[str]:
    found: list[str] = []
    while page := bench.core.jobs(QUEUE, status, after=found[-1] if found else "", limit=limit, wall=bench.wall):
        assert len(page) <= limit
        found += [info.id for info in page]
    return found


@pytest.mark.parametrize("limit", [1, 3, 100])
def test_jobs_are_listed_in_pages(bench: Bench, limit: int) -> None:
    """By age; what is delayed by its time, what is over by its end."""
    ready = bench.defer(*(bench.task(priority=number % 10) for number in range(12)))
    delayed = bench.defer(*(bench.task(due_at=bench.wall + 100 - number) for number in range(5)))
    waiting = bench.defer(*(bench.task(order="o") for _ in range(6)))
    assert pages(bench, "ready", limit) == [*ready, waiting[0]]
    assert pages(bench, "delayed", limit) == delayed[::-1]
    assert pages(bench, "waiting", limit) == waiting[1:]
    leases = bench.claim()
    assert pages(bench, "running", limit) == [*ready, waiting[0]]
    order = sorted(leases, key=lambda lease: lease.body + lease.id.encode()[::-1])
    for number, lease in enumerate(order[:8]):
        bench.settle(lease, verdict="dead" if number % 2 else "done")
        bench.wall += 1
    assert pages(bench, "done", limit) == [lease.id for lease in order[:8:2]]
    assert pages(bench, "dead", limit) == sorted(lease.id for lease in order[1:8:2])


def test_a_page_goes_on_behind_a_job_that_is_gone(bench: Bench) -> None:
    """People requeue and drop while they read."""
    bench.defer(*(bench.task() for _ in range(10)))
    for lease in bench.claim():
        bench.settle(lease, verdict="dead")
    seen: list[str] = []
    while page := bench.core.jobs(QUEUE, "dead", after=seen[-1] if seen else "", limit=3, wall=bench.wall):
        seen += [info.id for info in page]
        with bench.core.turn(bench.wall) as turn:
            turn.requeue(QUEUE, [page[0].id])
            turn.drop(QUEUE, [info.id for info in page[1:]])
        bench.wall += 2 * PROOF_S
        while bench.sweep():
            pass
    assert len(seen) == len(set(seen)) == 10


def test_the_oldest_ready_task_is_known(bench: Bench) -> None:
    """Since it is ready, not since it was made; of all priorities."""

    def oldest_s(queue: str = QUEUE) -> float:
        return {info.name: info.oldest_s for info in bench.core.queues(bench.wall)}[queue]

    bench.defer(bench.task(priority=0))
    bench.wall += 10
    bench.defer(bench.task(priority=9), bench.task(), bench.task("a.later", due_at=bench.wall + 5))
    assert (oldest_s(), oldest_s("a.later")) == (10, 0)
    bench.wall += 20
    bench.promote()
    assert (oldest_s(), oldest_s("a.later")) == (30, 15)
    first, second = bench.claim(2)
    assert oldest_s() == 30
    bench.settle(second, verdict="retry")
    bench.settle(first, verdict="release")
    assert oldest_s() == 30
    bench.claim(2)
    bench.settle(bench.one(), verdict="retry")
    assert oldest_s() == 0
    bench.wall += 3
    assert oldest_s() == 3


def test_a_queue_says_what_its_worker_said(bench: Bench) -> None:
    """Also after a restart, when nobody has said it yet."""
    said = Queue("mail.send", 10, rate_per_s=2.5, burst=3, concurrency=4, most_lost=7)
    with bench.core.turn(bench.wall) as turn:
        turn.declare(said)
    bench.reopen()
    [queue] = bench.core.queues(bench.wall)
    assert (queue.name, queue.rate_per_s, queue.concurrency) == ("mail.send", 2.5, 4)
    assert bench.core.declared("mail.send") == said
    assert bench.core.declared("mail.sort") is None


def test_a_long_chain_is_no_deep_one(bench: Bench) -> None:
    """Ten thousand steps die and are mended without a stack of as many calls."""
    count = 10_000
    ids = [bench.id() for _ in range(count)]
    tasks = [
        bench.task("a.b", id=id, waits=int(number > 0), feeds=ids[number + 1] if number + 1 < count else "")
        for number, id in enumerate(ids)
    ]
    bench.defer(*tasks)
    bench.settle(bench.one(queue="a.b"), verdict="dead")
    [queue] = bench.core.queues(bench.wall)
    assert queue.dead == count
    with bench.core.turn(bench.wall) as turn:
        assert turn.requeue("a.b") == 1
    [queue] = bench.core.queues(bench.wall)
    assert (queue.dead, queue.ready, queue.waiting) == (0, 1, count - 1)
    bench.sound()


def test_a_failure_is_kept_at_a_bearable_length(bench: Bench) -> None:
    """The end of a traceback says more than its beginning."""
    bench.defer(bench.task())
    bench.settle(bench.one(), verdict="dead", error="e" * 10**6, traceback="t" * 10**6 + "end", reason="failed")
    info = bench.job(bench.core.jobs(QUEUE, "dead", wall=bench.wall)[0].id)
    assert (len(info.error), len(info.traceback), info.traceback[-3:]) == (4000, 64_000, "end")


def test_what_nobody_knows_is_buried_in_steps(bench: Bench) -> None:
    """Ready tasks alone, with the reason."""
    bench.defer(*(bench.task() for _ in range(5)), bench.task(due_at=bench.wall + 10))
    with bench.core.turn(bench.wall) as turn:
        assert turn.bury(QUEUE, error="nobody knows mail.send", limit=3) == 3
        assert turn.bury(QUEUE, error="nobody knows mail.send", limit=3) == 2
        assert turn.bury(QUEUE, error="nobody knows mail.send", limit=3) == 0
        assert len(turn.over) == 5
    info = bench.core.jobs(QUEUE, "dead", wall=bench.wall)[0]
    assert (info.reason, info.error) == ("unknown", "nobody knows mail.send")
    assert bench.core.queues(bench.wall)[0].delayed == 1
