"""One request after the other, or two halves in turn: whichever carries more."""

from __future__ import annotations

from collections import Counter

import pytest

from mesh.tasks.pace import CROWD, Pace


def play(pace: Pace, callers: int, whole_s: float, half_s: float, steps: int, at: float = 1.0) -> Counter[bool]:
    """Callers in a closed loop, with an engine that takes so long for a whole request or for a half; how many
    steps were made with halves, and without."""
    seen: Counter[bool] = Counter()
    for _ in range(steps):
        share = pace.share(callers, 0, at)
        seen[share < callers] += 1
        if share == callers:
            at += whole_s
            continue
        # The halves in turn: one is answered and asks again while the other is under way.
        for _ in range(20):
            at += half_s
            if pace.share(callers // 2, callers // 2, at) != callers // 2 or pace.joining:
                break
    return seen


@pytest.mark.parametrize(("half_s", "better"), [(0.0007, True), (0.0015, False)])
def test_the_better_one_is_found_and_kept(half_s: float, better: bool) -> None:
    """Both are tried; most of the time goes to the one that carries more."""
    pace = Pace()
    play(pace, 64, 0.002, half_s, 400)
    at = 1000.0
    seen: Counter[bool] = Counter()
    for _ in range(4000):
        seen[pace.halves] += 1
        if pace.halves:
            at += half_s
            pace.share(32, 32, at)
        else:
            at += 0.002
            pace.share(64, 0, at)
    assert seen[better] > 4 * seen[not better] > 0


@pytest.mark.parametrize(("half_s", "better"), [(0.0009, True), (0.0011, False)])
def test_a_regular_pause_decides_nothing(half_s: float, better: bool) -> None:
    """The store copies its log every so many transactions: as long as eight rounds, and the same work in both modes."""
    pace, at, sent = Pace(), 1.0, 0
    seen: Counter[bool] = Counter()
    for step in range(30_000):
        if step > 1000:
            seen[pace.halves] += 1
        count = 32 if pace.halves else 64
        at += half_s if pace.halves else 0.002
        if (sent + count) // 5000 > sent // 5000:
            at += 0.016
        sent += count
        pace.share(count, 64 - count, at)
    assert seen[better] > 4 * seen[not better] > 0


def test_few_go_together() -> None:
    """A request costs as much as what is in it."""
    assert play(Pace(), CROWD - 1, 0.001, 0.0001, 1000) == {False: 1000}


def test_a_pause_is_not_measured() -> None:
    """Nobody asked for a second: that says nothing of what the engine can do."""
    pace = Pace()
    play(pace, 64, 0.002, 0.0007, 400)
    known = list(pace._rates)
    pace.share(64, 0, 2000.0)
    pace.share(64, 0, 2001.0)
    assert pace._rates == known


def test_halves_that_became_uneven_are_evened_out() -> None:
    """As many go as are under way."""
    pace = Pace()
    pace.share(64, 0, 1.0)
    pace.halves = True
    assert pace.share(64, 0, 1.01) == 32
    assert pace.share(60, 4, 1.02) == 32
    assert pace.share(32, 32, 1.03) == 32
    assert pace.share(64, 0, 2.0) == 64, "after a pause nobody knows"


def test_halves_are_joined_again() -> None:
    """From two to one: what comes waits until nothing is under way, and goes with the rest."""
    pace, at = Pace(), 1.0
    pace.share(64, 0, at)
    pace.halves = True
    pace._rates = [1e9, 1.0]
    while not pace.joining:
        at += 0.01
        pace.share(32, 32, at)
        assert at < 1000
    assert pace.share(64, 0, at + 0.01) == 64
    assert not pace.joining
