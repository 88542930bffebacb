"""The breaker: states as a table, counts in a window that moves, and probes."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.policy.breaker import TRANSITIONS, Breaker, Cause, State


def tripped(**options: float) -> Breaker:
    breaker = Breaker(**{"minimum": 2, "open_s": 5.0, "probes": 2, **options})  # type: ignore[arg-type]
    for _ in range(2):
        end(breaker, 0.0, failed=True)
    assert breaker.state is State.OPEN
    return breaker


def end(breaker: Breaker, now: float, *, failed: bool = False, slow: bool = False) -> None:
    admission = breaker.admit(now)
    assert admission is not None
    breaker.ended(admission, now, failed=failed, slow=slow)


def test_each_state_has_a_way_out():
    assert {state for state, _ in TRANSITIONS} == set(State)
    assert all(cause in {each for _, each in TRANSITIONS} for cause in Cause)


@pytest.mark.parametrize(
    ("failed", "calls", "state"), [(4, 10, State.CLOSED), (5, 10, State.OPEN), (9, 9, State.CLOSED)]
)
def test_it_opens_at_the_share_of_failures_once_enough_calls_count(failed: int, calls: int, state: State):
    breaker = Breaker(failures=0.5, minimum=10)
    for number in range(calls):
        end(breaker, 0.1, failed=number >= calls - failed)
    assert breaker.state is state


def test_it_opens_at_the_share_of_slow_calls():
    breaker = Breaker(failures=math.inf, slow=0.5, minimum=4)
    for slow in (False, False, True, True):
        end(breaker, 0.0, slow=slow)
    assert breaker.state is State.OPEN
    never = Breaker(failures=0.5, minimum=2)
    for _ in range(10):
        end(never, 0.0, slow=True)
    assert never.state is State.CLOSED


def test_what_is_older_than_the_window_does_not_count():
    breaker = Breaker(failures=0.5, minimum=4, window_s=10.0)
    for now in (0.0, 0.0, 0.0, 11.5):
        end(breaker, now, failed=True)
    assert breaker.state is State.CLOSED
    for now in (12.0, 12.0, 12.0):
        end(breaker, now, failed=True)
    assert breaker.state is State.OPEN


def test_open_it_refuses_and_then_tries_again():
    breaker = tripped()
    assert breaker.admit(4.9) is None
    assert (breaker.refused, breaker.wait_s(4.0)) == (1, 1.0)
    first, second = breaker.admit(5.0), breaker.admit(5.0)
    assert breaker.state is State.HALF_OPEN
    assert breaker.admit(5.0) is None  # no more probes at once
    assert first is not None
    assert second is not None
    breaker.ended(first, 5.1, failed=False)
    assert breaker.state is State.HALF_OPEN
    breaker.ended(second, 5.1, failed=False)
    assert (breaker.state, breaker.wait_s(5.1)) == (State.CLOSED, 0.0)
    end(breaker, 5.2, failed=True)
    assert breaker.state is State.CLOSED  # the window began anew


def test_a_probe_that_fails_opens_it_for_longer_each_time():
    breaker = tripped()
    now, waits = 0.0, []
    for _ in range(6):
        wait = breaker.wait_s(now)
        waits.append(wait)
        now += wait
        end(breaker, now, failed=True)
    assert waits == [5.0, 10.0, 20.0, 40.0, 40.0, 40.0]
    assert breaker.opened == 7


def test_a_cancelled_probe_gives_its_place_back():
    breaker = tripped(probes=1)
    admission = breaker.admit(5.0)
    assert admission is not None
    assert breaker.admit(5.0) is None
    breaker.abandoned(admission)
    end(breaker, 5.0)
    assert breaker.state is State.CLOSED


def test_a_call_from_before_a_change_changes_nothing():
    breaker = Breaker(minimum=1)
    late = breaker.admit(0.0)
    assert late is not None
    end(breaker, 0.0, failed=True)
    assert breaker.state is State.OPEN
    probe = breaker.admit(5.0)
    assert probe is not None
    breaker.ended(late, 5.1, failed=True)
    assert breaker.state is State.HALF_OPEN


@given(st.lists(st.tuples(st.floats(0, 3), st.booleans(), st.booleans()), max_size=80))
def test_whatever_happens_it_never_stays_shut(steps: list[tuple[float, bool, bool]]):
    breaker = Breaker(failures=0.5, slow=0.5, minimum=3, window_s=2.0, open_s=1.0, probes=2)
    now = 0.0
    for wait, failed, slow in steps:
        now += wait
        admission = breaker.admit(now)
        if admission is not None:
            breaker.ended(admission, now, failed=failed, slow=slow)
    now += Breaker.OPEN_MOST
    for _ in range(4):
        end(breaker, now)
    assert breaker.state is State.CLOSED
