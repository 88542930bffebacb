"""Who gets which task next: the pure half of the store, by examples and by simulation."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.engines.semantics.token_bucket import Bucket
from mesh.store.dispatch import KEEP_BACK_S, QUANTUM, Claim, Dispatch
from mesh.tasks.contract import Queue


class Table:
    """A dispatch, and tasks that it may give: numbers instead of rows."""

    def __init__(self) -> None:
        self.dispatch = Dispatch()
        self.ready: Counter[str] = Counter()
        self.suspects: Counter[str] = Counter()
        self.made = 0

    def attach(self, session: str, *queues: Queue, now: float = 0.0) -> None:
        self.dispatch.attach(session, queues, now)
        self.dispatch.open(session)

    def add(self, queue: str, count: int, suspects: int = 0, now: float = 0.0) -> None:
        self.ready[queue] += count
        self.suspects[queue] += suspects
        self.dispatch.ready(queue, self.ready[queue], self.suspects[queue], now)

    def step(self, now: float = 0.0) -> tuple[Claim, list[tuple[str, int]]] | None:
        """One claim, answered as the core would."""
        claim = self.dispatch.next(now)
        if claim is None:
            return None
        stock = self.suspects if claim.alone else self.ready
        count = min(claim.most, stock[claim.queue])
        stock[claim.queue] -= count
        leases = []
        for _ in range(count):
            self.made += 1
            leases.append((f"job-{self.made}", 1))
        self.dispatch.claimed(claim, leases, now)
        return claim, leases

    def run(self, now: float = 0.0) -> list[tuple[Claim, list[tuple[str, int]]]]:
        """Claims until there are none."""
        found = []
        while (step := self.step(now)) is not None:
            found.append(step)
        return found

    def given(self, now: float = 0.0) -> Counter[tuple[str, str]]:
        """(session, queue) -> how many leases it got."""
        got: Counter[tuple[str, str]] = Counter()
        for claim, leases in self.run(now):
            got[claim.session, claim.queue] += len(leases)
        return got


@pytest.fixture
def table() -> Table:
    return Table()


def test_a_worker_never_holds_more_than_its_credit(table: Table) -> None:
    """Credit is what a worker said that it will hold at once."""
    table.attach("w", Queue("a", 10))
    table.add("a", 25)
    assert table.given() == {("w", "a"): 10}
    assert table.given() == {}


def test_a_settled_lease_makes_room_for_the_next(table: Table) -> None:
    """A place that is given back is given on; one that was not held changes nothing."""
    table.attach("w", Queue("a", 1))
    table.add("a", 3)
    [(_, [(first, attempt)])] = table.run()
    table.dispatch.let_go(first, attempt + 1)
    table.dispatch.let_go("nobody's", 1)
    assert table.run() == []
    table.dispatch.let_go(first, attempt)
    assert sum(table.given().values()) == 1


def test_what_is_ready_is_divided_among_workers(table: Table) -> None:
    """The first worker that is asked does not take all."""
    for session in ("w1", "w2", "w3"):
        table.attach(session, Queue("a", 100))
    table.add("a", 9)
    assert table.given() == {("w1", "a"): 3, ("w2", "a"): 3, ("w3", "a"): 3}


def test_who_holds_least_is_served_first(table: Table) -> None:
    """One task at a time goes to the worker with the least to do, and in turn among equals."""
    for session in ("w1", "w2"):
        table.attach(session, Queue("a", 10))
    order = []
    for _ in range(6):
        table.add("a", 1)
        order += [claim.session for claim, _ in table.run()]
    assert order in (["w1", "w2"] * 3, ["w2", "w1"] * 3)


def test_no_queue_starves_another(table: Table) -> None:
    """A queue with very much to do is served in turns with one that has little."""
    table.attach("w", Queue("flood", 100_000), Queue("drip", 10))
    table.add("flood", 50_000)
    table.add("drip", 1)
    first_two = [table.step(), table.step()]
    assert {step[0].queue for step in first_two if step is not None} == {"flood", "drip"}
    assert all(step is not None and len(step[1]) <= QUANTUM for step in first_two)


def test_concurrency_holds_over_all_workers(table: Table) -> None:
    """So many at once in the whole mesh, whoever runs them; also those found after a restart count."""
    for session in ("w1", "w2"):
        table.attach(session, Queue("a", 10, concurrency=3))
    table.dispatch.hold("old", "a", "job-0", 4, 0.0)
    table.add("a", 10)
    assert sum(table.given().values()) == 2
    table.dispatch.let_go("job-0", 4)
    assert sum(table.given().values()) == 1


def test_a_rate_is_kept_and_the_next_look_is_known(table: Table) -> None:
    """Tokens bound what goes out per second; when the next one is there is said beforehand."""
    table.attach("w", Queue("a", 1000, rate_per_s=10.0, burst=5))
    table.add("a", 1000)
    assert sum(table.given(0.0).values()) == 5
    assert table.dispatch.due_at() == pytest.approx(0.1)
    assert table.given(0.05) == {}
    assert sum(table.given(0.1).values()) == 1
    assert sum(table.given(1.1).values()) == 5


def test_a_worker_that_does_not_read_gets_nothing(table: Table) -> None:
    """A shut worker holds up nobody else, and goes on where it stopped when it is open again."""
    table.attach("slow", Queue("a", 10))
    table.attach("fast", Queue("a", 2))
    table.dispatch.shut("slow")
    table.add("a", 10)
    assert table.given() == {("fast", "a"): 2}
    table.dispatch.open("slow")
    assert table.given() == {("slow", "a"): 8}


def test_what_a_worker_held_is_gone_with_it(table: Table) -> None:
    """A session that is over gives its places of the whole mesh back."""
    table.attach("w1", Queue("a", 5, concurrency=5))
    table.attach("w2", Queue("a", 5, concurrency=5))
    table.add("a", 5)
    table.run()
    assert table.dispatch.holds("w1") + table.dispatch.holds("w2") == 5
    table.dispatch.leave("w1")
    table.add("a", 5)
    assert table.given() == {("w2", "a"): 3}
    assert table.dispatch.workers("a") == 1


def test_a_worker_that_attaches_again_keeps_what_it_holds(table: Table) -> None:
    """Its leases count against its credit, as before."""
    table.attach("w", Queue("a", 4))
    table.add("a", 10)
    table.run()
    table.dispatch.shut("w")
    table.attach("w", Queue("a", 6))
    assert table.given() == {("w", "a"): 2}


def test_a_suspect_runs_alone(table: Table) -> None:
    """It goes to a worker that holds nothing, and nothing else goes there until it is over."""
    table.attach("busy", Queue("a", 5))
    table.add("a", 1)
    table.run()
    table.attach("idle", Queue("a", 5))
    table.add("a", 0, suspects=1)
    [(claim, [(suspect, attempt)])] = table.run()
    assert claim == Claim("a", "idle", 1, alone=True)
    table.add("a", 3)
    assert {session for session, _ in table.given()} == {"busy"}
    table.dispatch.let_go(suspect, attempt)
    table.add("a", 1)
    assert table.given() == {("idle", "a"): 1}


def test_two_suspects_run_one_after_the_other(table: Table) -> None:
    """Alone means alone."""
    table.attach("w", Queue("a", 5))
    table.add("a", 0, suspects=2)
    [(_, [(first, attempt)])] = table.run()
    assert table.run() == []
    table.dispatch.let_go(first, attempt)
    assert len(table.run()) == 1


def test_a_busy_worker_is_kept_back_for_a_suspect(table: Table) -> None:
    """Under load nobody is ever idle: one worker gets nothing new until it is, the others go on."""
    table.attach("w1", Queue("a", 1))
    table.attach("w2", Queue("a", 1))
    table.add("a", 2)
    held = {claim.session: leases[0] for claim, leases in table.run()}
    table.add("a", 100, suspects=1)
    assert table.run() == []
    for session, lease in held.items():
        table.dispatch.let_go(*lease)
        steps = table.run()
        alone = [claim.session for claim, _ in steps if claim.alone]
        if alone:
            assert alone == [session]
            return
        assert all(claim.session == session for claim, _ in steps)
    pytest.fail("the suspect was never given")


def test_a_worker_is_not_kept_back_for_ever(table: Table) -> None:
    """Who has an hour's work in hand does not stand idle for an hour: it works on, and later another try is made."""
    table.attach("w", Queue("a", 2))
    table.add("a", 1)
    [(_, [_long])] = table.run()
    table.add("a", 5, suspects=1)
    assert table.run(1.0) == []
    due_at = table.dispatch.due_at()
    assert due_at == pytest.approx(1.0 + KEEP_BACK_S)
    assert table.given(due_at) == {("w", "a"): 1}
    later_at = table.dispatch.due_at()
    assert later_at is not None
    assert later_at > due_at


def test_suspects_of_a_queue_that_are_gone_free_the_worker(table: Table) -> None:
    """When the suspect was cancelled, whoever was kept back for it works on."""
    table.attach("w", Queue("a", 2))
    table.add("a", 1)
    table.run()
    table.add("a", 3, suspects=1)
    assert table.run() == []
    table.suspects["a"] = 0
    table.add("a", 0)
    assert table.given() == {("w", "a"): 1}


def test_a_bucket_never_gives_more_than_its_rate() -> None:
    """In any window: at most the burst and what the rate brings in it."""
    rng = random.Random(7)
    bucket = Bucket(20.0, 10, 0.0)
    now, taken = 0.0, [(0.0, 0)]
    for _ in range(2000):
        now += rng.random() * 0.1
        count = bucket.left(now, rng.randint(1, 15))
        bucket.take(count)
        taken.append((now, count))
    for start in range(0, len(taken), 37):
        total = 0
        for at, count in taken[start:]:
            total += count
            assert total <= 10 + 20.0 * (at - taken[start][0]) + 1e-6


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**9))
def test_any_order_of_events_keeps_all_limits(seed: int) -> None:
    """Workers come and go, tasks come and end, in any order: limits hold, and in the end nothing that could be given
    is left."""
    rng = random.Random(seed)
    table = Table()
    queues = {f"q{number}": rng.choice([0, 0, 3, 7]) for number in range(rng.randint(1, 4))}
    credit: dict[str, dict[str, int]] = {}
    held: dict[str, tuple[int, str, str, bool]] = {}
    now = 0.0
    came = 0

    def take() -> None:
        for claim, leases in table.run(now):
            for id, attempt in leases:
                held[id] = (attempt, claim.session, claim.queue, claim.alone)
        check()

    def check() -> None:
        by_seat = Counter((session, queue) for _, session, queue, _ in held.values())
        by_queue = Counter(queue for _, _, queue, _ in held.values())
        by_session = Counter(session for _, session, _, _ in held.values())
        for (session, queue), count in by_seat.items():
            assert count <= credit[session][queue]
        for queue, most in queues.items():
            assert not most or by_queue[queue] <= most
        for _, session, _, alone in held.values():
            assert not alone or by_session[session] == 1

    for _ in range(rng.randint(20, 120)):
        now += rng.random()
        what = rng.random()
        if what < 0.15 and len(credit) < 5:
            came += 1
            session = f"w{came}"
            mine = rng.sample(sorted(queues), rng.randint(1, len(queues)))
            credit[session] = {queue: rng.randint(1, 5) for queue in mine}
            table.attach(
                session, *(Queue(queue, credit[session][queue], concurrency=queues[queue]) for queue in mine), now=now
            )
        elif what < 0.2 and credit:
            session = rng.choice(sorted(credit))
            table.dispatch.shut(session)
            table.dispatch.open(session)
        elif what < 0.25 and credit:
            session = rng.choice(sorted(credit))
            table.dispatch.leave(session)
            del credit[session]
            for id in [id for id, lease in held.items() if lease[1] == session]:
                del held[id]
        elif what < 0.6:
            table.add(rng.choice(sorted(queues)), rng.randint(0, 20), rng.choice([0, 0, 0, 1]), now)
        else:
            for id in rng.sample(sorted(held), min(len(held), rng.randint(1, 6))):
                table.dispatch.let_go(id, held.pop(id)[0])
        take()
        due_at = table.dispatch.due_at()
        assert due_at is None or due_at > now
    # Let everything end: whatever has a worker is given sooner or later.
    served = {queue for mine in credit.values() for queue in mine}
    for _ in range(2000):
        if not any(table.ready[queue] + table.suspects[queue] for queue in served):
            break
        now += KEEP_BACK_S
        for id in list(held):
            table.dispatch.let_go(id, held.pop(id)[0])
        take()
    assert not any(table.ready[queue] + table.suspects[queue] for queue in served)


def test_the_next_look_is_never_in_the_past(table: Table) -> None:
    """A timer that fires at once and changes nothing would fire for ever; also when nobody is left to keep back."""
    table.attach("w", Queue("a", 2))
    table.add("a", 1)
    table.run()
    table.add("a", 5, suspects=1, now=1.0)
    table.run(1.0)
    table.dispatch.leave("w")
    for now in (2.0, 1.0 + KEEP_BACK_S, 100.0, 1000.0):
        assert table.run(now) == []
        due_at = table.dispatch.due_at()
        assert due_at is None or due_at > now
