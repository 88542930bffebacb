"""Waits grow, stop growing, and spread."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.policy.backoff import Backoff


def test_each_failure_doubles_the_wait_until_the_ceiling():
    """Without chance the waits are first, 2 x first, 4 x first … and never more than the most."""
    backoff = Backoff(0.1, 1.0, jitter=0)
    assert [backoff.delay(n, 0.7) for n in range(1, 7)] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.0, 1.0])


def test_counting_from_zero_is_forgiven():
    """Failure number 0 waits like the first one."""
    assert Backoff(0.1, 1.0).delay(0, 0.0) == 0.1


def test_a_factor_of_one_waits_evenly():
    """A constant wait is a backoff, too."""
    backoff = Backoff(0.5, 2.0, factor=1, jitter=0)
    assert {backoff.delay(n, 0.0) for n in range(1, 50)} == {0.5}


def test_callers_who_failed_together_come_back_apart():
    """Jitter spreads a hundred callers over the whole allowed half of the wait."""
    rng = random.Random(3)
    waits = [Backoff(1.0, 1.0, jitter=0.5).delay(1, rng.random()) for _ in range(100)]
    assert min(waits) < 0.55
    assert max(waits) > 0.95


@given(
    st.floats(1e-6, 1e3),
    st.floats(1, 1e6),
    st.floats(1, 100),
    st.floats(0, 1),
    st.integers(-5, 10**12),
    st.floats(0, 1, exclude_max=True),
)
def test_no_wait_leaves_its_bounds(first_s, times, factor, jitter, attempt, rnd):
    """Whatever the attempt, the wait lies between (1 - jitter) x first and most, and nothing overflows."""
    most_s = first_s * times
    wait = Backoff(first_s, most_s, factor, jitter).delay(attempt, rnd)
    assert first_s * (1 - jitter) * 0.999_999 <= wait <= most_s


@pytest.mark.parametrize(
    "wrong",
    [
        {"first_s": 0},
        {"first_s": float("nan")},
        {"most_s": 0.05},
        {"most_s": float("inf")},
        {"factor": 0.5},
        {"jitter": 1.5},
    ],
)
def test_a_wrong_argument_is_named(wrong):
    """A backoff that could not work is refused when it is made, by the name of the argument."""
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Backoff(**{"first_s": 0.1, "most_s": 1.0, **wrong})
