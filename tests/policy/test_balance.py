"""The slow get less, equals share, and keys stay where they are."""

import heapq
import itertools
import random
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.policy.balance import LEAST_S, Ewma, call_cost, pick_two, rendezvous


class Replica:
    """One simulated instance: one call at a time, in order, each taking `needs_s` on average."""

    def __init__(self, name: str, needs_s: float) -> None:
        self.name = name
        self.needs_s = needs_s
        self.in_flight = 0
        self.free_at = 0.0
        self.latency = Ewma()


class World:
    """A closed loop: each caller calls again as soon as it is answered."""

    def __init__(self, needs_s: list[float], seed: int) -> None:
        self.rng = random.Random(seed)
        self.replicas = [Replica(f"r{i}", s) for i, s in enumerate(needs_s)]
        self.now = 0.0
        self.answered: Counter[str] = Counter()
        self._events: list[tuple[float, int, Replica, float]] = []
        self._order = itertools.count()

    def call(self) -> None:
        now = self.now
        chosen = pick_two(self.rng.random, self.replicas, lambda r: call_cost(r.in_flight, r.latency.value(now)))
        chosen.in_flight += 1
        chosen.free_at = max(chosen.free_at, now) + chosen.needs_s * self.rng.uniform(0.5, 1.5)
        heapq.heappush(self._events, (chosen.free_at, next(self._order), chosen, now))

    def run(self, seconds: float) -> Counter[str]:
        """The calls that each replica answered in the next `seconds`."""
        end = self.now + seconds
        before = self.answered.copy()
        while self._events[0][0] <= end:
            self.now, _, replica, began_at = heapq.heappop(self._events)
            replica.in_flight -= 1
            replica.latency.observe(self.now - began_at, self.now)
            self.answered[replica.name] += 1
            self.call()
        self.now = end
        return self.answered - before


def world(needs_s: list[float], callers: int, seed: int) -> World:
    made = World(needs_s, seed)
    for _ in range(callers):
        made.call()
    return made


@pytest.mark.parametrize("callers", [1, 4, 32])
@pytest.mark.parametrize("seed", [1, 2])
def test_an_instance_ten_times_slower_gets_clearly_less(callers, seed):
    """Of three replicas the slow one answers less than a fifth of what each of the others does."""
    answered = world([0.002, 0.002, 0.02], callers, seed).run(10)
    fast = (answered["r0"] + answered["r1"]) / 2
    assert 0 < answered["r2"] < fast / 5
    assert 0.8 < answered["r0"] / answered["r1"] < 1.25


def test_equal_instances_share_equally():
    """Three replicas of the same speed each get a third, within a tenth of it."""
    answered = world([0.002, 0.002, 0.002], 16, seed=5).run(10)
    share = sum(answered.values()) / 3
    assert all(abs(n - share) < share / 10 for n in answered.values())


def test_an_instance_that_recovers_gets_its_share_back():
    """Slow for five seconds, then well: twenty seconds later it works as much as the others."""
    made = world([0.002, 0.002, 0.02], 8, seed=9)
    made.run(5)
    made.replicas[2].needs_s = 0.002
    made.run(20)
    answered = made.run(5)
    assert answered["r2"] > 0.8 * answered["r0"]


def test_a_newcomer_is_not_sent_everything():
    """An instance that has never answered is given some calls, not all, before its first answer."""
    rng = random.Random(4)
    old, new = Replica("old", 0.002), Replica("new", 0.002)
    old.latency.observe(0.002, 0.0)
    for _ in range(100):
        chosen = pick_two(rng.random, [old, new], lambda r: call_cost(r.in_flight, r.latency.value(0.0)))
        chosen.in_flight += 1
    assert new.in_flight < 75


def test_one_candidate_is_taken_without_asking():
    """With nothing to choose from, neither chance nor cost is asked."""

    def never(*_: object) -> float:
        raise AssertionError("asked")

    assert pick_two(never, ["only"], never) == "only"


def test_no_candidates_is_a_clear_error():
    """Choosing among none is the caller's mistake, and said so."""
    with pytest.raises(ValueError, match="pick_two"):
        pick_two(random.Random(1).random, [], lambda _: 0.0)


@given(st.integers(2, 5000), st.floats(0, 1, exclude_max=True))
def test_the_two_are_always_different_and_in_range(n, drawn):
    """Every draw, down to the last float below 1, gives two different candidates."""
    asked = []

    def cost(i: int) -> float:
        asked.append(i)
        return 0.0

    pick_two(lambda: drawn, range(n), cost)
    assert len(set(asked)) == 2


def test_every_ordered_pair_is_drawn_equally_often():
    """Walking the unit interval evenly draws each pair the same number of times."""
    n = 5
    pairs = Counter()
    for step in range(n * (n - 1) * 10):
        asked: list[int] = []
        pick_two(lambda at=step: (at + 0.5) / 200, range(n), lambda i, to=asked: to.append(i) or 0.0)
        pairs[tuple(asked)] += 1
    assert set(pairs.values()) == {10}
    assert len(pairs) == n * (n - 1)


def test_a_peak_is_believed_at_once_and_forgotten_by_halves():
    """A slow answer counts fully; after one half-life of fast ones, half of it is left."""
    latency = Ewma(half_life_s=2.0)
    latency.observe(0.1, 10.0)
    latency.observe(1.1, 10.0)
    assert latency.value(10.0) == 1.1
    latency.observe(0.1, 12.0)
    assert latency.value(12.0) == pytest.approx(0.6)


def test_without_answers_a_latency_fades():
    """Silence halves it, too, down to a floor: an instance that was slow is asked again."""
    latency = Ewma(half_life_s=1.0)
    latency.observe(0.8, 0.0)
    assert latency.value(1.0) == pytest.approx(0.4)
    assert latency.value(1000.0) == LEAST_S


@pytest.mark.parametrize("first", [0.000_3, 0.25])
def test_the_first_answer_replaces_the_guess(first):
    """What an unknown instance was taken to need leaves no trace."""
    latency = Ewma()
    assert not latency.observed
    latency.observe(first, 5.0)
    assert latency.observed
    assert latency.value(5.0) == first


def test_many_answers_at_one_instant_count_once():
    """A hundred fast answers in one loop tick do not talk away a peak."""
    latency = Ewma(half_life_s=1.0)
    latency.observe(1.0, 0.0)
    for _ in range(100):
        latency.observe(0.001, 0.0)
    assert latency.value(0.0) == 1.0


def test_a_half_life_of_nothing_is_refused():
    """Without a half-life there is nothing to smooth."""
    with pytest.raises(ValueError, match="half_life_s"):
        Ewma(0)


names = st.text(min_size=0, max_size=20)


@given(names, st.sets(names, min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_the_order_of_a_key_depends_on_nothing_else(key, ids, rng):
    """Each id appears once, in the same order however the ids were learnt."""
    ordered = rendezvous(key, ids)
    shuffled = list(ids)
    rng.shuffle(shuffled)
    assert sorted(ordered) == sorted(ids)
    assert rendezvous(key, shuffled) == ordered


def test_only_the_keys_of_a_leaver_move_and_each_to_its_next():
    """Of ten instances one leaves: exactly its keys move, and they go to what stood second."""
    ids = [f"cart-{i}" for i in range(10)]
    keys = [f"user-{i}" for i in range(2000)]
    before = {k: rendezvous(k, ids) for k in keys}
    after = {k: rendezvous(k, [i for i in ids if i != "cart-4"])[0] for k in keys}
    assert all(after[k] == (order[1] if order[0] == "cart-4" else order[0]) for k, order in before.items())


def test_keys_spread_evenly():
    """Ten thousand keys over eight instances: each has its eighth, within 10 %."""
    held = Counter(rendezvous(f"key-{i}", [f"i{n}" for n in range(8)])[0] for i in range(10_000))
    assert all(abs(n - 1250) < 125 for n in held.values())


def test_another_process_finds_the_same_order():
    """String hashing is seeded per process; the order of a key is not."""
    ids = ["a", "b", "c", "d", "e"]
    told = subprocess.run(
        [
            sys.executable,
            "-c",
            f"from mesh.policy.balance import rendezvous; print(*rendezvous('ujun', {ids}))",
        ],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "77"},
    )
    assert told.stdout.split() == rendezvous("ujun", ids)
