"""How long and how often: the one place that tells a short run from a full one.

Owns: the plan of a run, medians over rounds, whose turn it is.
Leaves to others: what is measured (rpc, http, events, fanout, startup, memory, instances, idle, publish,
    tasks).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


def _silent(_: str) -> None:
    return None


@dataclass(frozen=True)
class Plan:
    """One run.

    Attributes:
        rounds: how often each contestant is measured; the median counts.
        seconds: how long one load is measured; it is put on for a third of that before.
        only: keys of the contestants to measure; empty for all.
        say: told in a few words what is going on.
    """

    rounds: int = 3
    seconds: float = 1.5
    short: bool = False
    only: tuple[str, ...] = ()
    say: Callable[[str], None] = _silent

    @property
    def warm_s(self) -> float:
        return self.seconds / 3


def short(plan: Plan) -> Plan:
    """The same in a few seconds: to see that everything runs, not to quote."""
    return Plan(rounds=1, seconds=0.15, short=True, only=plan.only, say=plan.say)


def turns(contestants: Sequence[T], turn: int) -> list[T]:
    """Everyone once, starting with another one at each turn, so that nobody always follows the same neighbour."""
    start = turn % len(contestants) if contestants else 0
    return [*contestants[start:], *contestants[:start]]


def medians(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Per name the median over the rounds that have it."""
    names = dict.fromkeys(name for one in rounds for name in one)
    return {name: statistics.median([one[name] for one in rounds if name in one]) for name in names}


def spread(values: Sequence[float]) -> float:
    """How far the rounds lie apart: (greatest - least) / median; 0 for fewer than two."""
    middle = statistics.median(values) if values else 0.0
    return (max(values) - min(values)) / middle if len(values) > 1 and middle else 0.0
