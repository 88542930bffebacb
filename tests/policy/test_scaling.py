"""Replicas follow the load up and down, keep still under a steady one, and stay between their limits: simulated."""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.policy.scaling import DOWN_TO, Look, Memory, Rule, decide

RULE = Rule(minimum=1, maximum=20)
EVERY_S = 2.0
START_S = 2.0


class Service:
    """A service whose calls take a fixed time of processor, each worker on a core of its own; fluid, not random."""

    def __init__(self, rule: Rule, call_s: float = 0.01, workers: int = 1, noise: float = 0.0) -> None:
        self.rule = rule
        self.call_s = call_s
        self.workers = workers
        self.ready: list[float] = [0.0] * workers  # when each is ready
        self.backlog = 0.0
        self.memory = Memory()
        self.history: list[tuple[float, int]] = []
        self.why: list[str] = []
        self.worst_backlog = 0.0
        self._rng = random.Random(1)
        self._noise = noise

    def run(self, rate: Callable[[float], float], seconds: float) -> list[tuple[float, int]]:
        """Go on for so long under `rate(t)` calls per second; (when, how many) after each look."""
        begun = self.history[-1][0] if self.history else 0.0
        for step in range(1, int(seconds / EVERY_S) + 1):
            now = begun + step * EVERY_S
            load = rate(now) * (1 + self._noise * (2 * self._rng.random() - 1))
            able = sum(at <= now for at in self.ready)
            demanded = self.backlog + load * EVERY_S
            done = min(demanded, able * EVERY_S / self.call_s)
            self.backlog = demanded - done
            self.worst_backlog = max(self.worst_backlog, self.backlog)
            # What is in flight besides the backlog, by Little's law.
            in_flight = round(self.backlog + done / EVERY_S * self.call_s)
            look = Look(now, self.workers, able, done * self.call_s / EVERY_S, in_flight)
            decision, self.memory = decide(look, self.rule, self.memory)
            self.why.append(decision.why)
            while len(self.ready) < decision.workers:
                self.ready.append(now + START_S)
            del self.ready[decision.workers :]
            self.workers = decision.workers
            self.history.append((now, self.workers))
        return self.history

    def turns(self) -> int:
        """How often it went the other way than before."""
        steps = [b - a for (_, a), (_, b) in itertools.pairwise(self.history) if b != a]
        return sum(a * b < 0 for a, b in itertools.pairwise(steps))


def test_a_ramp_up_and_down_is_followed_without_flapping():
    """1× → 10× → 1×: up within seconds, down when it has lasted, one turn in all."""
    service = Service(RULE)
    service.run(lambda t: 50, 60)
    assert service.workers == 1
    service.run(lambda t: 500, 120)
    high = service.workers
    # 500 calls of 10 ms are 5 cores; at 70 % each that is 8.
    assert 8 <= high <= math.ceil(5 / 0.7 / DOWN_TO)
    assert service.backlog == 0
    service.run(lambda t: 50, 400)
    assert service.workers == 1
    assert service.turns() == 1


def test_a_tenfold_load_is_answered_within_half_a_minute():
    """What piled up meanwhile is gone, too."""
    service = Service(RULE, workers=1)
    service.run(lambda t: 30, 20)
    service.run(lambda t: 300, 30)
    assert service.workers >= 4
    service.run(lambda t: 300, 20)
    assert service.backlog == 0


@pytest.mark.parametrize("load", [45, 70, 130, 260, 500, 1000])
def test_a_noisy_but_steady_load_settles(load: float):
    """±20 % at each look: it goes up to where that fits, and never down and up again."""
    service = Service(RULE, noise=0.2)
    history = service.run(lambda t: load, 900)
    settled = [workers for at, workers in history if at > 180]
    assert settled == sorted(settled)
    assert settled[-1] - settled[0] <= 1
    assert service.turns() <= 1


def test_a_daily_wave_moves_it_up_and_down_once():
    """A sine with a period of ten minutes: no more turns than the wave has."""
    service = Service(RULE)
    service.run(lambda t: 400 + 350 * math.sin(2 * math.pi * t / 600), 1800)
    assert service.turns() <= 6
    assert max(workers for _, workers in service.history) >= 10
    assert min(workers for at, workers in service.history if at > 300) <= 3


def test_a_short_peak_is_sat_out():
    """Two seconds of load start nobody; that would be over before they were there."""
    service = Service(RULE)
    service.run(lambda t: 150 if 30 <= t < 32 else 30, 60)
    assert {workers for _, workers in service.history} == {1}


def test_a_short_quiet_sends_nobody_away():
    """Half a minute without load is no reason: starting them again would cost more."""
    service = Service(RULE)
    service.run(lambda t: 500, 120)
    settled = service.workers
    history = service.run(lambda t: 0 if 130 <= t < 160 else 500, 120)
    assert {workers for at, workers in history if at > 120} == {settled}


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 3000), st.integers(1, 60)), min_size=1, max_size=12),
    st.integers(1, 5),
    st.integers(0, 12),
)
def test_it_never_leaves_its_limits(loads: list[tuple[float, int]], minimum: int, more: int):
    """Whatever the load does; and no step more than doubles or halves."""
    rule = Rule(minimum=minimum, maximum=minimum + more)
    service = Service(rule, workers=minimum)
    for load, looks in loads:
        service.run(lambda t, load=load: load, looks * EVERY_S)
    counts = [minimum, *(workers for _, workers in service.history)]
    assert all(rule.minimum <= workers <= rule.maximum for workers in counts)
    assert all(b <= 2 * a and b >= a / 2 for a, b in itertools.pairwise(counts))


# --- single decisions -----------------------------------------------------------------------------------


def steady(look: Look, rule: Rule = RULE, seconds: float = 70.0):
    """The decision after the same was seen for so long."""
    memory, decision = Memory(), None
    for step in range(int(seconds / EVERY_S) + 1):
        decision, memory = decide(look._replace(at=step * EVERY_S), rule, memory)
        if decision.workers != look.workers:
            break
    assert decision is not None
    return decision


def test_calls_that_wait_need_more_workers():
    """As many more as wait beside those that run, though no processor is busy: they wait for a database."""
    decision = steady(Look(0, 2, 2, cpu=0.1, in_flight=30, waiting=10))
    assert decision.workers == 3
    assert re.findall(r"[\d.]+", decision.why) == ["0.10", "0.7", "0.1", "10", "3.0", "2", "3"]


def test_calls_in_flight_have_a_target_of_their_own():
    """For services that wait for others."""
    rule = RULE._replace(in_flight=10)
    assert steady(Look(0, 3, 3, in_flight=48), rule).workers == 5
    assert steady(Look(0, 3, 3, in_flight=30), rule).workers == 3
    assert steady(Look(0, 3, 3, in_flight=5), rule).workers == 2


def test_slow_answers_are_a_reason_for_more_and_quick_ones_none_for_fewer():
    """Latency alone never takes a worker away that the processor time keeps."""
    rule = RULE._replace(latency_s=0.1)
    assert steady(Look(0, 2, 2, cpu=0.8, latency_s=0.2), rule).workers == 4
    assert steady(Look(0, 2, 2, cpu=1.3, latency_s=0.001), rule).workers == 2


def test_the_greatest_need_counts():
    """Whichever measure is worst off decides."""
    rule = RULE._replace(in_flight=10, latency_s=0.1)
    assert steady(Look(0, 4, 4, cpu=4.0, in_flight=55, latency_s=0.11), rule).workers == 6


@pytest.mark.parametrize("ready", [1.0, 1.4, 1.54])
def test_near_the_target_nothing_changes(ready: float):
    """The band: from 85 % of it with one fewer to a tenth above."""
    assert steady(Look(0, 2, 2, cpu=ready)).workers == 2


def test_processors_that_are_not_there_start_nobody():
    """Ten workers that wait for two cores would not be helped by ten more."""
    assert steady(Look(0, 3, 3, cpu=10.0), RULE._replace(cores=2)).workers == 3


def test_what_was_scaled_to_zero_by_hand_is_left_alone():
    """Somebody has switched it off."""
    assert steady(Look(0, 0, 0)).workers == 0


def test_outside_its_limits_it_is_brought_back_at_once():
    """mesh.toml has new ones, or somebody has scaled beyond them."""
    assert steady(Look(0, 30, 30, cpu=30.0)).workers == 20
    assert steady(Look(0, 1, 1), RULE._replace(minimum=3)).workers == 3


def test_workers_that_do_not_answer_are_no_measure():
    """They start, or hang: more of them would do the same."""
    assert steady(Look(0, 2, 0, cpu=2.0)).workers == 2


def test_each_reason_to_wait_is_told():
    """`--dry-run` shows them as they are."""
    memory = Memory()
    said = []
    for at in (0.0, 2.0, 4.0, 6.0):
        decision, memory = decide(Look(at, 1, 1, cpu=1.0), RULE, memory)
        said.append(decision.why.partition("; ")[2])
    # The numbers of each: workers now, workers wanted, seconds so far, seconds needed.
    assert [re.findall(r"\d+", each) for each in said] == [
        ["1", "2", "0", "4"],
        ["1", "2", "2", "4"],
        ["1", "2"],
        ["1", "2", "4"],
    ]
    why = steady(Look(0, 4, 4, cpu=0.5), seconds=20).why
    assert re.findall(r"\d+", why.partition("; ")[2]) == ["4", "1", "60", "20"]
