"""Rate limits: never more than the limit in any window, a table that cannot be exhausted, and handing over."""

from __future__ import annotations

import random
from bisect import bisect_left

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.policy.rate_table import SHARED, Quota, RateTable
from mesh.policy.rate_window import SLICES, Window

FIVE = Quota("five", 5, 10.0)


def admitted(table: RateTable, caller: str, times: list[float], quota: Quota = FIVE) -> list[float]:
    return [at for at in times if table.decide(caller, [quota], at).refused < 0]


def most_in_any(times: list[float], window_s: float) -> int:
    """The most instants in any span that is open at its end."""
    return max((bisect_left(times, at + window_s) - index for index, at in enumerate(times)), default=0)


@given(
    most=st.integers(1, 60),
    window_s=st.sampled_from([1.0, 5.0, 60.0]),
    gaps=st.lists(st.floats(0.0, 2.0), max_size=400),
    start=st.floats(0.0, 1e6),
)
def test_no_span_of_the_window_has_more_than_the_limit(most: int, window_s: float, gaps: list[float], start: float):
    times, now = [], start
    for gap in gaps:
        now += gap * window_s / 10
        times.append(now)
    found = admitted(RateTable(10), "a", times, Quota("x", most, window_s))
    # One ulp of the clock: a + w - a is not always w.
    assert most_in_any(found, window_s * (1 - 1e-12) - 1e-9) <= most


def test_constant_overload_gets_nearly_the_limit():
    times = [number / 200 for number in range(200 * 20)]
    found = admitted(RateTable(10), "a", times, Quota("x", 100, 1.0))
    assert 20 * 100 * (1 - 1 / SLICES) - 100 <= len(found) <= 20 * 100


def test_a_burst_is_admitted_and_a_refusal_says_when_the_next_one_is():
    table = RateTable(10)
    assert len(admitted(table, "a", [100.0] * 7)) == 5
    decision = table.decide("a", [FIVE], 104.0)
    assert (decision.refused, decision.standings) == (0, ((0, 6.0),))
    assert table.decide("a", [FIVE], 109.9).refused == 0
    assert table.decide("a", [FIVE], 110.0) == (-1, ((4, 10.0),))


def test_callers_and_limits_do_not_share_a_window():
    table = RateTable(10)
    assert len(admitted(table, "a", [0.0] * 9)) == 5
    assert len(admitted(table, "b", [0.0] * 9)) == 5
    assert len(admitted(table, "a", [0.0] * 9, Quota("other", 3, 10.0))) == 3


def test_a_request_that_one_limit_refuses_is_counted_by_none():
    table = RateTable(10)
    fast, slow = Quota("fast", 2, 1.0), Quota("slow", 3, 100.0)
    decisions = [table.decide("a", [fast, slow], at).refused for at in (0.0, 0.0, 0.0, 0.5, 1.0, 1.0, 2.0)]
    # The longest wait is the one that is reported.
    assert decisions == [-1, -1, 0, 0, -1, 1, 1]
    # All three are one group, which counts until its last admission is 100 s old.
    assert table.decide("a", [slow], 99.0).standings == ((0, 2.0),)


def test_ended_windows_are_forgotten():
    table = RateTable(1000)
    for number in range(500):
        table.decide(str(number), [FIVE], 0.0)
    assert len(table) == 500
    for number in range(250):
        table.decide(f"later {number}", [FIVE], 20.0)
    assert len(table) == 250


def test_a_caller_at_its_limit_stays_limited_whatever_others_send():
    table = RateTable(1000)
    assert len(admitted(table, "limited", [0.0] * 5)) == 5
    for number in range(20_000):
        table.decide(f"address {number}", [FIVE], 1.0)
        assert len(table) <= 1000
        if number % 500 == 0:
            assert table.decide("limited", [FIVE], 1.0).refused == 0
    assert table.decide("limited", [FIVE], 9.9).refused == 0
    assert table.decide("limited", [FIVE], 10.0).refused == -1
    assert table.forgotten > 0


def test_a_flood_of_one_limit_does_not_change_what_others_have_counted():
    """A caller below its daily limit is not forgotten, although its window is the oldest one."""
    table = RateTable(1000)
    day, second = Quota("day", 5, 86400.0), Quota("second", 100, 1.0)
    assert len(admitted(table, "guesser", [0.0] * 4, day)) == 4
    for number in range(20_000):
        table.decide(f"address {number}", [second], 10.0 + number * 0.0001)
    assert [table.decide("guesser", [day], at).refused for at in (20.0, 20.0)] == [-1, 0]
    # The windows that have ended leave.
    for number in range(600):
        table.decide(f"later {number}", [second], 30.0)
    assert len(table) == 601


def test_a_table_that_one_limit_has_filled_has_room_for_others():
    """A thousand callers are at their limit for a day: callers of another limit have windows of their own."""
    table = RateTable(1000)
    day, second = Quota("day", 5, 86400.0), Quota("second", 3, 1.0)
    for number in range(2000):
        admitted(table, f"address {number}", [0.0] * 5, day)
    found = [len(admitted(table, f"user {number}", [1.0] * 4, second)) for number in range(500)]
    assert found == [3] * 500
    # Only half of the table is taken from the first limit.
    for number in range(500, 2000):
        admitted(table, f"user {number}", [1.0] * 4, second)
    assert sum(name == "day" for name, _ in table.held()) == 500


def test_a_flood_from_more_addresses_than_keys_is_limited_too():
    """All callers are at their limits: new ones share windows, and memory does not grow."""
    table = RateTable(1000)
    for number in range(1000):
        admitted(table, f"first {number}", [0.0] * 5)
    let_in = sum(len(admitted(table, f"second {number}", [1.0] * 5)) for number in range(10_000))
    assert let_in <= SHARED * 5
    assert len(table) == 1000
    assert sum(len(lane.shared) for lane in table._lanes.values()) <= SHARED
    # When the first windows have ended, there is room again.
    assert table.decide("third", [FIVE], 30.0).standings == ((4, 10.0),)


@pytest.mark.parametrize("seed", range(5))
def test_a_handed_over_window_is_as_strict_as_before(seed: int):
    rng = random.Random(seed)
    now, tables = 1000.0, [RateTable(10), RateTable(10)]
    quota = Quota("x", 20, 5.0)
    found = []
    for _ in range(2000):
        now += rng.expovariate(20)
        if rng.random() < 0.02:
            # Another clock on the other side: only ages are handed over.
            tables[1].join(tables[0].part([("x", "a")], now), now)
            tables.reverse()
        if tables[0].decide("a", [quota], now).refused < 0:
            found.append(now)
    assert most_in_any(found, 5.0 - 1e-9) <= 20
    assert len(found) > 0.8 * 20 / 5 * (found[-1] - found[0])


def test_only_the_wanted_callers_are_handed_over():
    table, other = RateTable(10), RateTable(10)
    admitted(table, "a", [0.0] * 3)
    admitted(table, "b", [0.0] * 3)
    other.join(table.part([("five", "a"), ("five", "unknown")], 1.0), 501.0)
    assert (len(table), len(other)) == (1, 1)
    assert other.decide("a", [FIVE], 501.0).standings == ((1, 9.0),)
    assert other.decide("a", [FIVE], 501.0).standings == ((0, 9.0),)


def test_a_window_above_its_limit_waits_until_it_is_below():
    window = Window(2, 10.0)
    window.add([(8.0, 1), (5.0, 1), (1.0, 1)], 100.0)
    assert (window.used, window.free_s(2, 100.0)) == (3, 5.0)
