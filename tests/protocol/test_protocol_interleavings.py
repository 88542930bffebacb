"""Two honest machines, driven against each other through any interleaving (see protocol_pair)."""

from __future__ import annotations

import os
import random
import time

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from protocol_pair import Pair

FUZZ_SECONDS = float(os.environ.get("MESH_FUZZ_SECONDS", "0"))

numbers = st.integers(0, 10_000)


class Interleavings(RuleBasedStateMachine):
    """Any action that is possible now; goodbyes and cuts are rules of their own, so that they are not most of it."""

    def __init__(self) -> None:
        super().__init__()
        self.pair = Pair()

    @rule(which=numbers, argument=numbers)
    def act(self, which: int, argument: int) -> None:
        """One thing happens."""
        actions = self.pair.actions()
        action, choices = actions[which % len(actions)]
        action(argument % choices)

    @rule(rounds=st.integers(1, 3))
    def travel(self, rounds: int) -> None:
        """What was written arrives."""
        for _ in range(rounds):
            self.pair.flush_caller()
            self.pair.flush_callee()
            if self.pair.to_callee:
                self.pair.deliver_to_callee(len(self.pair.to_callee) - 1)
            if self.pair.to_caller:
                self.pair.deliver_to_caller(len(self.pair.to_caller) - 1)

    @rule(sure=st.integers(0, 9))
    def goodbye(self, sure: int) -> None:
        if sure == 0:
            self.pair.goodbye()

    @rule(sure=st.integers(0, 19))
    def cut(self, sure: int) -> None:
        if sure == 0:
            self.pair.cut()

    @invariant()
    def promises(self) -> None:
        self.pair.check()

    def teardown(self) -> None:
        self.pair.settle()


Interleavings.TestCase.settings = settings(max_examples=60, stateful_step_count=60)
TestInterleavings = Interleavings.TestCase


def _walk(seed: int, steps: int) -> Pair:
    """A life of a link, or several, drawn from a seed."""
    draw = random.Random(seed)
    pair = Pair()
    eager = draw.random()
    for _ in range(steps):
        chance = draw.random()
        if chance < 0.002:
            pair.goodbye()
        elif chance < 0.004:
            pair.cut()
        elif chance < 0.004 + eager * 0.5:
            pair.flush_caller()
            pair.flush_callee()
        actions = pair.actions()
        action, choices = draw.choice(actions)
        action(draw.randrange(choices))
        pair.check()
    pair.settle()
    return pair


@pytest.mark.parametrize("seed", range(40))
def test_promises_hold_on_long_walks(seed):
    """Hundreds of steps, with goodbyes and cuts among them."""
    _walk(seed, 400)


def test_long_walks_do_what_they_are_for():
    """Between them they lose, give up, fail, refuse and finish calls and streams: they are no test of nothing."""
    ends: set[object] = set()
    lives = 0
    for seed in range(12):
        pair = _walk(seed, 400)
        lives += pair.lives
        ends |= {(asked.stream, asked.end) for asked in pair.asked.values()}
    assert lives > 12, "some were cut"
    assert {(False, 20), (True, 24), (False, "given up"), (True, "given up"), (False, 21), (True, 22)} <= ends


@pytest.mark.timeout(FUZZ_SECONDS + 60)
@pytest.mark.skipif(not FUZZ_SECONDS, reason="set MESH_FUZZ_SECONDS to search for so long from fresh seeds")
def test_promises_hold_however_long_one_searches():
    """Walks from fresh seeds until the time is over; a failure names its seed."""
    until = time.monotonic() + FUZZ_SECONDS / 2
    first = seed = time.time_ns()
    while time.monotonic() < until:
        try:
            _walk(seed, 1000)
        except BaseException as exc:
            exc.add_note(f"_walk({seed}, 1000)")
            raise
        seed += 1
    print(f"{seed - first} walks from seed {first}")
