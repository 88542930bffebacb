"""How figures are made: the closed loop, percentiles, medians, turns."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from benchmarks.drive import drive, rank, summary
from benchmarks.plan import Plan, medians, short, spread, turns


def test_a_percentile_is_a_value_that_was_measured():
    """Nearest rank: no value is made up between two."""
    values = [float(number) for number in range(1, 101)]
    assert (rank(values, 0.5), rank(values, 0.99), rank(values, 1.0)) == (50.0, 99.0, 100.0)
    assert rank([7.0], 0.5) == rank([7.0], 0.99) == 7.0


def test_figures_are_in_microseconds_and_per_call():
    """Seconds go in; calls per second, microseconds and processor time per call come out."""
    figures = summary([0.003, 0.001, 0.002], seconds=0.5, cpu_s=0.0006)
    assert figures["calls"] == 3
    assert figures["calls_per_s"] == 6.0
    assert figures["p50_us"] == pytest.approx(2000)
    assert figures["p99_us"] == pytest.approx(3000)
    assert figures["cpu_us"] == pytest.approx(200)


async def test_the_loop_is_closed():
    """Never more calls under way than callers, all of them busy, and none left behind."""
    under_way, most = 0, 0

    async def call(body: Any) -> None:
        nonlocal under_way, most
        assert body == {"a": 1}
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        under_way -= 1

    figures = await drive(call, {"a": 1}, callers=5, seconds=0.02)
    assert (under_way, most) == (0, 5)
    assert figures["calls"] >= 5


async def test_an_error_of_a_contestant_is_not_counted_as_speed():
    """A call that fails ends the load with its error."""

    async def call(body: Any) -> None:
        raise ConnectionError("refused")

    with pytest.raises(ConnectionError):
        await drive(call, {}, callers=3, seconds=0.02)


def test_the_median_of_the_rounds_counts():
    """One disturbed round changes nothing; a figure that one round lacks is taken from the others."""
    assert medians([{"a": 1.0, "b": 4.0}, {"a": 100.0}, {"a": 2.0, "b": 6.0}]) == {"a": 2.0, "b": 5.0}
    assert spread([90.0, 100.0, 120.0]) == pytest.approx(0.3)
    assert spread([5.0]) == spread([]) == 0.0


def test_everyone_has_the_first_turn_once():
    """Nobody is measured always after the same neighbour's heat."""
    orders = [turns("abc", turn) for turn in range(3)]
    assert [order[0] for order in orders] == ["a", "b", "c"]
    assert all(sorted(order) == ["a", "b", "c"] for order in orders)
    assert turns([], 4) == []


def test_a_short_run_keeps_its_contestants():
    """Short changes how long and how often, not who."""
    plan = short(Plan(rounds=9, seconds=5, only=("raw",)))
    assert plan.only == ("raw",)
    assert plan.rounds == 1
    assert plan.short
