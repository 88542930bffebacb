"""Percentiles of the last durations."""

from __future__ import annotations

from mesh.policy.durations import EVERY, FEWEST, KEPT, Durations


def test_a_percentile_needs_a_few_durations():
    durations = Durations(0.95)
    for number in range(FEWEST - 1):
        durations.add(number)
    assert durations.percentile is None
    durations.add(100.0)
    assert durations.percentile == 100.0


def test_old_durations_do_not_count_and_the_percentile_follows():
    durations = Durations(0.5)
    for _ in range(KEPT):
        durations.add(1.0)
    assert durations.percentile == 1.0
    for _ in range(EVERY - 1):
        durations.add(9.0)
    assert durations.percentile == 1.0  # not computed anew yet
    for _ in range(KEPT):
        durations.add(9.0)
    assert durations.percentile == 9.0
