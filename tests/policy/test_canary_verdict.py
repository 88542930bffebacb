"""The verdict on a new release: rarely wrong about equal ones, and quick about bad ones, however often it is read."""

from __future__ import annotations

import random
from bisect import bisect_left
from functools import cache
from itertools import accumulate, product
from math import comb, exp

import pytest

from mesh.policy.canary import Calls, Judge, Rules, Verdict, percentage, steps
from mesh.policy.sequential import Excess, e_value

BOUNDS = (0.001, 0.005, 0.01, 0.05, 0.1)

#: 400 requests a second, 5 % of them for the new release.
OLD, NEW = 380, 20


@cache
def distribution(calls: int, rate: float) -> list[float]:
    """The cumulative binomial distribution."""
    return list(accumulate(comb(calls, k) * rate**k * (1 - rate) ** (calls - k) for k in range(calls + 1)))


def draws(rng: random.Random, calls: int, rate: float) -> int:
    """How many of the calls fail."""
    return min(bisect_left(distribution(calls, rate), rng.random()), calls)


@pytest.mark.parametrize("most", [-0.3, -0.02, 0.0, 0.001, 0.2])
@pytest.mark.parametrize("sizes", [(1, 1), (2, 5), (5, 2)])
def test_the_mean_of_an_e_value_is_at_most_one_under_the_hypothesis(most: float, sizes: tuple[int, int]) -> None:
    """Calculated over all outcomes, for rates on a grid of the hypothesis."""
    a, b = sizes
    grid = [n / 10 for n in range(11)]
    for supposed, rate in ((0.5, 0.05), (0.05, 0.01), (0.999, 0.9)):
        for p, q in product(grid, grid):
            if p - q > most:
                continue
            mean = sum(
                comb(a, i) * p**i * (1 - p) ** (a - i) * comb(b, j) * q**j * (1 - q) ** (b - j)
                * exp(e_value(supposed, rate, most, a, i, b, j))
                for i in range(a + 1)
                for j in range(b + 1)
            )  # fmt: skip
            assert mean <= 1 + 1e-6


@pytest.mark.parametrize("rate", [0.0005, 0.02, 0.3])
def test_equal_releases_are_seldom_found_to_differ(rate: float) -> None:
    """10,000 pairs in all, each read after each of 30 batches: a false alarm in at most 1 % of them."""
    rng = random.Random(7)
    alarms = 0
    runs = 3334
    for _ in range(runs):
        test = Excess(0.001)
        test.expect(OLD, draws(rng, OLD, rate))
        for _ in range(30):
            test.add(NEW, draws(rng, NEW, rate), OLD, draws(rng, OLD, rate))
            if test.evidence >= 100:
                alarms += 1
                break
    assert alarms <= 0.01 * runs


def test_a_rate_that_changes_for_both_is_no_evidence() -> None:
    """A dependency fails and recovers: half of the calls of both releases fail meanwhile."""
    rng = random.Random(8)
    alarms = 0
    for _ in range(1000):
        test = Excess(0.001)
        for second in range(30):
            rate = 0.5 if 10 <= second < 15 else 0.001
            test.add(NEW, draws(rng, NEW, rate), OLD, draws(rng, OLD, rate))
            if test.evidence >= 100:
                alarms += 1
                break
    assert alarms <= 10


@pytest.mark.parametrize(("old", "within_s", "most"), [(0.0, 40, 0.95), (0.002, 50, 0.95), (0.01, 60, 0.85)])
def test_two_percent_more_errors_are_found_within_a_minute(old: float, within_s: int, most: float) -> None:
    """At 400 requests a second and a share of 5 %; nearly always where the old release seldom fails."""
    rng = random.Random(9)
    found = 0
    for _ in range(200):
        judge = Judge(Rules(), ())
        judge.expect(Calls(OLD, draws(rng, OLD, old)), {})
        for second in range(within_s):
            before, after = Calls(OLD, draws(rng, OLD, old)), Calls(NEW, draws(rng, NEW, old + 0.02))
            judge.observe(before, after, {"m": (before, after)})
            if judge.verdict(float(second)).verdict is Verdict.ROLL_BACK:
                found += 1
                break
    assert found >= 200 * most


@pytest.mark.parametrize(("extra", "within_s"), [(1.0, 3), (0.02, 60)])
def test_what_goes_wrong_late_is_found_too(extra: float, within_s: int) -> None:
    """After ten minutes without a fault, as when a limit is reached with a larger share."""
    rng = random.Random(12)
    found = 0
    for _ in range(10):
        judge = Judge(Rules(), ())
        for second in range(600 + within_s):
            before = Calls(OLD, draws(rng, OLD, 0.001))
            after = Calls(NEW, draws(rng, NEW, min(1.0, 0.001 + (extra if second >= 600 else 0.0))))
            judge.observe(before, after, {"m": (before, after)})
            if judge.errors >= 200:
                found += second >= 600
                break
    assert found >= 9


def test_each_share_needs_its_own_proof() -> None:
    """That a share of 5 % did no harm does not show that 25 % do none."""
    judge = Judge(Rules(step_s=1.0), ())
    judge.observe(Calls(10_000), Calls(1000), {})
    assert judge.verdict(1.0).verdict is Verdict.PROMOTE
    judge.raise_share()
    assert judge.verdict(1.0).verdict is Verdict.HOLD
    judge.observe(Calls(10_000), Calls(1000), {})
    assert judge.verdict(1.0).verdict is Verdict.PROMOTE


def test_a_method_that_is_rarely_called_is_found_on_its_own() -> None:
    """One call in 50 is of a method that fails always in the new release."""
    rng = random.Random(10)
    judge = Judge(Rules(), ())
    for second in range(60):
        rare = (Calls(8, 0), Calls(1, 1) if rng.random() < 0.4 else Calls())
        judge.observe(Calls(OLD, 1), Calls(NEW, rare[1].failed), {"often": (Calls(372), Calls(19)), "rare": rare})
        found = judge.verdict(float(second))
        if found.verdict is Verdict.ROLL_BACK:
            break
    assert found.verdict is Verdict.ROLL_BACK
    assert "rare" in found.why


def latencies(rng: random.Random, calls: int, mean_s: float) -> Calls:
    buckets = [0] * (len(BOUNDS) + 1)
    for _ in range(calls):
        buckets[bisect_left(BOUNDS, rng.expovariate(1 / mean_s))] += 1
    return Calls(calls, 0, tuple(buckets))


def test_a_slower_release_is_found_and_an_equal_one_is_not() -> None:
    """Twice as slow: rolled back. As fast: promoted, in nearly all of 200 cases."""
    rng = random.Random(11)
    verdicts = []
    for factor in (2.0, 1.0):
        for _ in range(100):
            judge = Judge(Rules(step_s=60.0), BOUNDS)
            for second in range(120):
                judge.observe(latencies(rng, 190, 0.004), latencies(rng, NEW, 0.004 * factor), {})
                found = judge.verdict(float(second))
                if found.verdict is not Verdict.HOLD:
                    break
            verdicts.append(found.verdict)
    assert verdicts[:100].count(Verdict.ROLL_BACK) >= 99
    assert verdicts[100:].count(Verdict.PROMOTE) >= 99


def test_a_promotion_needs_time_and_calls() -> None:
    """Neither alone is enough; and without calls the release is undecided in the end."""
    rules = Rules(step_s=10.0, hold_s=100.0)
    judge = Judge(rules, ())
    judge.observe(Calls(10_000), Calls(1000), {})
    assert judge.verdict(9.0).verdict is Verdict.HOLD
    assert judge.verdict(10.0).verdict is Verdict.PROMOTE
    idle = Judge(rules, ())
    idle.observe(Calls(100), Calls(5), {})
    assert idle.verdict(99.0).verdict is Verdict.HOLD
    assert idle.verdict(100.0).verdict is Verdict.UNDECIDED


def test_a_release_that_fails_every_call_is_found_with_a_handful() -> None:
    """Ten calls, after the old release was seen to answer."""
    judge = Judge(Rules(), ())
    judge.expect(Calls(2000, 0), {})
    judge.observe(Calls(190, 0), Calls(10, 10), {})
    assert judge.verdict(1.0).verdict is Verdict.ROLL_BACK


def test_without_calls_of_the_old_release_nothing_is_found() -> None:
    """There is nothing to compare with."""
    judge = Judge(Rules(), ())
    judge.observe(Calls(), Calls(1000, 500), {})
    assert judge.errors <= 1.0
    assert judge.verdict(1.0).verdict is Verdict.HOLD


def test_steps() -> None:
    """In percent, rising; all calls are the promotion itself, not a step."""
    assert steps("5,25,50,100") == (0.05, 0.25, 0.5)
    assert steps("5%, 25%", first=0.1) == (0.1, 0.25)
    assert steps("100") == ()
    for wrong in ("", "5,5", "0", "101", "-1", "nan", "five"):
        with pytest.raises(ValueError, match=r"percentage|rise"):
            steps(wrong)
    assert percentage("2.5%") == 0.025


def test_impossible_arguments_are_errors() -> None:
    with pytest.raises(ValueError, match="most"):
        Excess(1.0)
    with pytest.raises(ValueError, match="power"):
        Excess(0.0, power=0.0)
