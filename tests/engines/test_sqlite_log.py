"""The log and its subscriptions in the SQLite core: windows, positions, replays and forgetting."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from sqlite_bench import QUICK_DIR, Bench

from mesh.engines.sqlite import subscriptions
from mesh.engines.sqlite.status import PROOF_S
from mesh.errors import BadRequest
from mesh.tasks.contract import Lease, Queue, QueueInfo, Settlement

AUDIT = "orders.audit"
RETENTION_S = 10_000.0


@pytest.fixture
def bench() -> Iterator[Bench]:
    with TemporaryDirectory(prefix="mesh-engines-", dir=QUICK_DIR) as dir:
        bench = Bench(Path(dir) / "data", retention_s=RETENTION_S)
        yield bench
        bench.core.close()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows in which a test sees something."""
    monkeypatch.setattr(subscriptions, "MOST_READY", 10)
    monkeypatch.setattr(subscriptions, "FEW_READY", 5)
    monkeypatch.setattr(subscriptions, "MOST_MADE", 25)


def subscribe(bench: Bench, *patterns: str, name: str = AUDIT, start: str = "new") -> None:
    with bench.core.turn(bench.wall) as turn:
        turn.declare(Queue(name, 10, patterns=patterns or ("order.*",), start=start))  # type: ignore[arg-type]


def append(bench: Bench, count: int, topic: str = "order.created", key: str = "") -> list[int]:
    events = [bench.event(topic, b"%d" % number, key=key) for number in range(count)]
    return list(bench.commit(events=events).offsets)


def info(bench: Bench, name: str = AUDIT) -> QueueInfo:
    return next(queue for queue in bench.core.queues(bench.wall) if queue.name == name)


def all_pumped(bench: Bench) -> None:
    while bench.core.pumpable():
        assert bench.pump() > 0


def drained(bench: Bench) -> list[int]:
    """The offsets of all deliveries, as they come."""
    seen: list[int] = []
    while True:
        all_pumped(bench)
        leases: list[Lease] = bench.claim(3, queue=AUDIT)
        if not leases:
            return seen
        seen += [lease.offset for lease in leases]
        bench.settle(*leases)


# --- delivering ---------------------------------------------------------------------------------------------


def test_an_event_is_delivered_in_the_turn_that_appends_it(bench: Bench) -> None:
    """To a subscription that has all that came before; what it does not match changes nothing."""
    subscribe(bench)
    with bench.core.turn(bench.wall) as turn:
        turn.apply([bench.unit(events=[bench.event(body=b"1"), bench.event("user.x"), bench.event(body=b"2")])])
        leases = turn.claim(AUDIT, 10, "w1")
        assert turn.woken == {AUDIT}
    assert [(lease.body, lease.offset) for lease in leases] == [(b"1", 1), (b"2", 3)]
    assert not bench.core.pumpable()
    assert (info(bench).position, info(bench).backlog) == (3, 0)
    bench.sound()


@pytest.mark.parametrize("sizes", [[10] * 70, [10] * 70 + [20_000, 10, 300_000]])
def test_events_of_any_size_are_kept_in_order(bench: Bench, sizes: list[int]) -> None:
    """Small ones share statements, large ones do not; the log shows no difference."""
    events = [bench.event(body=b"b" * size) for size in sizes]
    bench.commit(events=events)
    found, _ = bench.core.read("#", limit=1000)
    assert [logged.event for logged in found] == events
    bench.sound()


@pytest.mark.usefixtures("small")
def test_a_backlog_is_no_row_for_each_event(bench: Bench) -> None:
    """Deliveries are made while few are ready; all of them come, in order, and once."""
    subscribe(bench)
    offsets = append(bench, 7) + append(bench, 7) + append(bench, 200)
    assert info(bench).ready == 10
    assert info(bench).backlog == 204
    assert not bench.core.pumpable()
    bench.sound()
    assert drained(bench) == offsets
    assert info(bench).backlog == 0
    later = append(bench, 3)
    assert not bench.core.pumpable()
    assert drained(bench) == later
    bench.sound()


@pytest.mark.usefixtures("small")
def test_no_task_takes_the_place_of_a_delivery(bench: Bench) -> None:
    """The log shows the ids of events, and subscriptions have small numbers: a delivery's id is no secret."""
    subscribe(bench)
    events = [bench.event() for _ in range(30)]
    offsets = list(bench.commit(events=events).offsets)
    behind = events[20]
    for number in range(1, 4):
        task = bench.task("thief.own", id=f"{behind.id}-{number}")
        assert bench.refused(tasks=[task]).code == "bad_request"
    assert drained(bench) == offsets
    bench.sound()


@pytest.mark.usefixtures("small")
def test_a_task_that_has_the_id_of_a_later_delivery_is_left_alone(bench: Bench) -> None:
    """Who knew an event's id before the event was in the log has made it, and spoils no more than that event."""
    subscribe(bench)
    lane = bench.core._rooms.book.lanes[AUDIT].no
    event = bench.event()
    task = bench.task("thief.own", id=f"{event.id}-{lane}")
    bench.defer(task)
    bench.settle(*bench.claim(1, queue="thief.own"))
    before = append(bench, 15)
    bench.commit(events=[event])
    assert drained(bench) == before
    assert bench.status(task.id) == "done"
    bench.sound()


@pytest.mark.usefixtures("small")
def test_one_slow_key_does_not_fill_the_file(bench: Bench) -> None:
    """What waits behind it is made up to a bound; other subscriptions go on."""
    subscribe(bench)
    subscribe(bench, name="orders.other")
    offsets = append(bench, 100, key="slow")
    all_pumped(bench)
    queue = info(bench)
    assert (queue.ready, queue.waiting) == (1, 24)
    assert info(bench, "orders.other").waiting == 24
    bench.settle(bench.one(queue=AUDIT), verdict="retry", due_at=bench.wall + 50)
    all_pumped(bench)
    assert info(bench).waiting == 24
    bench.wall += 51
    bench.promote()
    assert drained(bench) == offsets


def test_a_new_subscription_starts_where_it_says(bench: Bench) -> None:
    """With all that is kept, or with what is new; one that is known goes on."""
    old = append(bench, 3)
    subscribe(bench, start="all")
    subscribe(bench, name="orders.new")
    assert info(bench).backlog == 3
    assert info(bench, "orders.new").backlog == 0
    assert drained(bench) == old
    subscribe(bench, start="all")
    assert drained(bench) == []


def test_positions_outlive_kill_and_stop(bench: Bench) -> None:
    """What was delivered is not delivered again, though other topics came between; what was not, is."""
    subscribe(bench)
    append(bench, 3)
    append(bench, 5, "user.x")
    assert drained(bench) == [1, 2, 3]
    image = {path.name: path.read_bytes() for path in bench.dir.iterdir() if not path.name.endswith("-shm")}
    bench.wall += 2 * PROOF_S
    bench.core.close()
    for name, content in image.items():
        (bench.dir / name).write_bytes(content)
    bench.core.open()
    assert bench.core.pumpable()
    while bench.sweep():
        pass
    assert drained(bench) == []
    bench.reopen()
    # A stop has noted that nothing of what came between concerned it.
    assert not bench.core.pumpable()
    assert drained(bench) == []
    assert append(bench, 1) == drained(bench) == [9]


def test_other_patterns_hold_for_what_is_not_delivered_yet(bench: Bench) -> None:
    """From the place where the subscription is."""
    subscribe(bench)
    append(bench, 2)
    subscribe(bench, "user.*")
    append(bench, 1)
    [offset] = append(bench, 1, "user.x")
    assert drained(bench) == [1, 2, offset]
    with bench.core.turn(bench.wall) as turn:
        turn.declare(Queue(AUDIT, 10))
    append(bench, 1, "user.x")
    assert drained(bench) == []
    subscribe(bench, "user.*")
    assert drained(bench) == [5]


def test_a_failed_turn_delivers_nothing(bench: Bench) -> None:
    """Neither events nor deliveries nor positions, nor a subscription that was new in it."""
    subscribe(bench)
    append(bench, 1)
    with pytest.raises(ZeroDivisionError):
        fail(bench)
    assert bench.core.read("#")[0][-1].offset == 1
    assert append(bench, 1) == [2]
    assert drained(bench) == [1, 2]
    bench.sound()


def fail(bench: Bench) -> None:
    with bench.core.turn(bench.wall) as turn:
        turn.apply([bench.unit(events=[bench.event(), bench.event()])])
        turn.claim(AUDIT, 10, "w1")
        turn.declare(Queue("other.new", 10, patterns=("#",), start="all"))
        turn.pump()
        turn.replay(AUDIT, offset=1)
        raise ZeroDivisionError


# --- reading ------------------------------------------------------------------------------------------------


def test_the_log_is_read_in_steps(bench: Bench) -> None:
    """A step looks at so many events; it says where to go on, and when the end is reached."""
    for number in range(30):
        append(bench, 1, "rare.one" if number % 10 == 7 else "common.one")
    found, after, steps = [], 0, 0
    at: int | None = 0
    while at is not None:
        events, at = bench.core.read("rare.*", after=at, limit=2, scan=4)
        found += [event.offset for event in events]
        steps += 1
    assert found == [8, 18, 28]
    assert steps == 8
    assert bench.core.read("common.one", after=after, limit=3) == (
        [bench.core.read("#", after=offset - 1, limit=1)[0][0] for offset in (1, 2, 3)],
        3,
    )
    assert bench.core.read("#", after=30) == ([], None)
    with pytest.raises(BadRequest):
        bench.core.read("a..b")


def test_matching_events_are_counted_in_steps(bench: Bench) -> None:
    """For a subscription, from an offset on."""
    subscribe(bench, start="all")
    append(bench, 10)
    append(bench, 10, "user.x")
    total, at = 0, 4
    while at is not None:
        count, at = bench.core.count(AUDIT, after=at, scan=3)
        total += count
    assert total == 6
    with pytest.raises(BadRequest, match=r"'nobody\.here'.*orders\.audit"):
        bench.core.count("nobody.here")


def test_an_instant_is_found_in_the_log(bench: Bench) -> None:
    """The first event that was appended at or after it; none has the next offset."""
    assert bench.core.offset_at(0.0) == 1
    for _ in range(20):
        append(bench, 2)
        bench.wall += 10
    start = bench.wall - 200
    assert [bench.core.offset_at(start + seconds) for seconds in (-1, 0, 1, 10, 95, 189, 190, 191)] == [
        1,
        1,
        3,
        3,
        21,
        39,
        39,
        41,
    ]


# --- replaying ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small")
def test_a_replay_delivers_again_what_is_settled(bench: Bench) -> None:
    """In order, also more than a window; what is outstanding, or dead, stays one."""
    subscribe(bench)
    offsets = append(bench, 60)
    assert drained(bench) == offsets
    more = append(bench, 3)
    bench.settle(bench.one(queue=AUDIT), verdict="dead")
    with bench.core.turn(bench.wall) as turn:
        turn.replay(AUDIT, offset=offsets[20])
    assert info(bench).backlog == 43
    bench.sound()
    assert sorted(drained(bench)) == sorted(offsets[20:] + more[1:])
    assert info(bench).dead == 1
    with bench.core.turn(bench.wall) as turn:
        turn.replay(AUDIT, offset=1000)
    assert drained(bench) == []


def test_a_replayed_delivery_has_new_numbers(bench: Bench) -> None:
    """What the first one says still is refused."""
    subscribe(bench)
    append(bench, 1)
    first = bench.one(queue=AUDIT)
    bench.settle(first)
    with bench.core.turn(bench.wall) as turn:
        turn.replay(AUDIT, offset=0)
        turn.pump()
        [again] = turn.claim(AUDIT, 1, "w2")
    assert (again.id, again.attempt, again.tries) == (first.id, 2, 1)
    assert bench.refused(settle=[bench.word(first)]).code == "lease_lost"
    bench.settle(again)


# --- giving up ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small")
def test_a_subscription_that_nobody_has_any_more_can_be_given_up(bench: Bench) -> None:
    """Its deliveries end, its backlog is nobody's, and the log may be forgotten; another one is not touched."""
    subscribe(bench)
    subscribe(bench, name="orders.other")
    append(bench, 30)
    append(bench, 30, key="k")
    held, dead = bench.claim(2, queue=AUDIT)
    bench.settle(dead, verdict="dead")
    steps = 0
    while abandon(bench, 4):
        steps += 1
    assert steps >= 3
    assert [queue.running for queue in bench.core.queues(bench.wall) if queue.name == AUDIT] == [1]
    assert info(bench, "orders.other").ready == 10
    bench.settle(held)
    append(bench, 1)
    assert drained(bench) == []
    bench.sound()
    while bench.claim(5, queue="orders.other"):
        for leases in bench.core.held().values():
            bench.apply(bench.unit(settle=[Settlement(lease.id, lease.attempt, "done") for lease in leases]))
        all_pumped(bench)
    bench.wall += RETENTION_S + 1
    while bench.sweep():
        pass
    assert bench.core.read("#") == ([], None)
    assert bench.core.names() == ["orders.other"]
    subscribe(bench)
    [offset] = append(bench, 1)
    assert drained(bench) == [offset]


def abandon(bench: Bench, limit: int) -> int:
    with bench.core.turn(bench.wall) as turn:
        return turn.abandon(AUDIT, limit=limit)


# --- forgetting ---------------------------------------------------------------------------------------------


def test_old_events_are_forgotten_but_for_those_that_are_wanted(bench: Bench) -> None:
    """A dead delivery and one that is delayed keep theirs."""
    subscribe(bench)
    offsets = append(bench, 6)
    first, second, *rest = bench.claim(queue=AUDIT)
    bench.settle(first, verdict="dead")
    bench.settle(second, verdict="retry", due_at=bench.wall + 5 * RETENTION_S)
    bench.settle(*rest)
    append(bench, 4, "user.x")
    bench.wall += RETENTION_S + 1
    young = append(bench, 1)
    bench.settle(bench.one(queue=AUDIT))

    def kept() -> list[int]:
        for _ in range(4):
            while bench.sweep(3):
                pass
            # It takes its time with what it must not forget.
            bench.wall += 11
        return [event.offset for event in bench.core.read("#")[0]]

    assert kept() == [*offsets[:2], *young]
    with bench.core.turn(bench.wall) as turn:
        turn.requeue(AUDIT)
    bench.settle(bench.one(queue=AUDIT))
    assert kept() == [offsets[1], *young]
    bench.wall += 5 * RETENTION_S
    bench.promote()
    assert bench.one(queue=AUDIT).offset == offsets[1]
    assert kept() == [offsets[1]]
    bench.sound()


@pytest.mark.usefixtures("small")
def test_a_backlog_is_not_forgotten(bench: Bench) -> None:
    """However long the subscriber was away."""
    subscribe(bench)
    offsets = append(bench, 50)
    append(bench, 5, "user.x")
    for _ in range(4):
        bench.wall += RETENTION_S
        while bench.sweep():
            pass
    assert drained(bench) == offsets
    bench.wall += RETENTION_S
    while bench.sweep():
        pass
    assert bench.core.read("#") == ([], None)


def test_offsets_grow_over_an_empty_log_and_a_restart(bench: Bench) -> None:
    """What was given out is not given out again."""
    append(bench, 5)
    bench.wall += RETENTION_S + 1
    while bench.sweep():
        pass
    assert bench.core.info().events == 0
    bench.reopen()
    assert append(bench, 1) == [6]
    bench.sound()
