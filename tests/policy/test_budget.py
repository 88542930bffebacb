"""Retries stay a fraction of the calls."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.policy.budget import SLOTS, RetryBudget


def test_five_calls_earn_one_retry():
    """With a ratio of 0.2 and no reserve every fifth call pays for a retry, exactly."""
    budget = RetryBudget(0.2, 0, 10)
    for _ in range(4):
        budget.deposit(0.0)
    assert not budget.withdraw(0.0)
    budget.deposit(0.0)
    assert budget.withdraw(0.0)
    assert not budget.withdraw(0.0)
    assert budget.refused == 2


def test_the_reserve_is_there_without_any_calls():
    """A caller that has only just begun may retry, as often as a window's reserve allows."""
    budget = RetryBudget(0.2, 3, 10)
    assert sum(budget.withdraw(1.0) for _ in range(100)) == 30


def test_all_calls_in_flight_to_a_process_that_dies_may_be_retried():
    """A steady 5,000 calls per second pay for a thousand failing in one instant."""
    budget = RetryBudget()
    for n in range(5000):
        budget.deposit(n / 5000)
    assert all(budget.withdraw(1.0) for _ in range(1000))


def test_when_everything_fails_the_load_grows_by_the_ratio_only():
    """Each call fails and asks for two retries, for a minute: 20 % more load and the reserve, not three times."""
    budget = RetryBudget(0.2, 1, 10)
    calls = retries = 0
    for n in range(60_000):
        now = n / 1000
        budget.deposit(now)
        calls += 1
        retries += budget.withdraw(now) + budget.withdraw(now)
    assert retries <= 0.2 * calls + 1 * 10 * 6
    assert retries >= 0.2 * calls * 0.9


def test_what_a_window_did_not_use_is_lost():
    """A million calls yesterday pay for no storm of retries today."""
    budget = RetryBudget(0.2, 0, 10)
    for _ in range(1000):
        budget.deposit(0.0)
    assert budget.left(9.9 - 10 / SLOTS) == 200
    assert budget.left(10.1) == 0


def test_after_a_long_silence_the_budget_is_as_new():
    """Neither calls nor retries of an hour ago count, and catching up takes no time."""
    budget = RetryBudget(0.2, 1, 10)
    while budget.withdraw(0.0):
        pass
    assert budget.left(3600 * 24 * 365.0) == 10


steps = st.lists(
    st.tuples(st.sampled_from(["call", "retry", "retry"]), st.sampled_from([0.0, 0.001, 0.3, 1.0, 4.0, 60.0])),
    max_size=300,
)


@given(
    st.sampled_from([0.0, 0.1, 0.2, 0.5, 1.0]), st.sampled_from([0.0, 0.3, 2.0]), st.sampled_from([1.0, 10.0]), steps
)
def test_retries_never_exceed_the_ratio_and_the_reserve(ratio, reserve_per_s, window_s, script):
    """For any history: in each window, and since the start, retries ≤ ratio x calls + reserve."""
    budget = RetryBudget(ratio, reserve_per_s, window_s)
    now = 0.0
    calls: list[float] = []
    retries: list[float] = []
    for act, pause in script:
        now += pause
        if act == "call":
            budget.deposit(now)
            calls.append(now)
        elif budget.withdraw(now):
            retries.append(now)
            reserve = reserve_per_s * window_s
            # Retries are remembered for at least a window less one slot; calls for at most a window.
            remembered = window_s * (1 - 1 / SLOTS)
            recent_retries = sum(at > now - remembered for at in retries)
            # The instants are sums of floats: 0.6 is not within 1.0 of 1.6 to the last digit.
            recent_calls = sum(at >= now - window_s - 1e-9 for at in calls)
            assert recent_retries <= ratio * recent_calls + reserve + 1e-6
    windows = math.floor(now / window_s) + 1
    assert len(retries) <= ratio * len(calls) + reserve_per_s * window_s * windows + 1e-6


@given(steps)
def test_a_retry_that_is_allowed_was_left_before(script):
    """`left` tells what `withdraw` will do."""
    budget = RetryBudget(0.5, 1, 10)
    now = 0.0
    for act, pause in script:
        now += pause
        if act == "call":
            budget.deposit(now)
        else:
            left = budget.left(now)
            assert budget.withdraw(now) is (left >= 1)
            assert budget.left(now) == (left - 1 if left >= 1 else left)


@pytest.mark.parametrize("wrong", [{"ratio": -0.1}, {"reserve_per_s": -1}, {"window_s": 0}, {"ratio": float("nan")}])
def test_a_wrong_budget_is_named(wrong):
    """A budget that could not work is refused when it is made, by the name of the argument."""
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RetryBudget(**wrong)
