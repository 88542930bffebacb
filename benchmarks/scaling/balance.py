"""How evenly calls fall on instances when each caller knows only its own: the power of two choices, by numbers.

Owns: a queue in front of each instance, callers that know what they themselves have under way, and the comparison.
Leaves to others: the choice itself, which is mesh's own code (policy.balance).

Open load: calls come at random and do not wait for each other. Each instance works on one call at a time, as one with
CPU-bound work does, and is busy for LOAD of its time. A call takes WORK_S on average, exponentially distributed.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from mesh.policy.balance import Ewma, call_cost, pick_two

LOAD: Final = 0.7
WORK_S: Final = 0.01
#: So many calls are looked at, after as many that are not: a busy queue takes its time to become what it is.
CALLS: Final = 30_000


class Seen:
    """An instance, as one caller sees it."""

    __slots__ = ("in_flight", "latency", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        self.in_flight = 0
        self.latency = Ewma()


@dataclass(frozen=True)
class Waits:
    """Answer times over WORK_S: 1.0 is a call that found nobody before it."""

    mean: float
    p99: float


def _play(callers: int, instances: int, seed: int, calls: int, choose: str) -> Waits:
    rng = random.Random(f"{seed}/{callers}/{instances}")
    draw = rng.random
    views: list[list[Seen] | None] = [None] * callers
    shared = [Seen(number) for number in range(instances)]
    free_at = [0.0] * instances
    under_way: list[tuple[float, int, float, Seen]] = []
    rate = instances * LOAD / WORK_S
    now, answers = 0.0, []
    for number in range(2 * calls):
        now += rng.expovariate(rate)
        while under_way and under_way[0][0] <= now:
            ended_at, _, began_at, seen = heapq.heappop(under_way)
            seen.in_flight -= 1
            seen.latency.observe(ended_at - began_at, ended_at)
        caller = int(draw() * callers)
        if choose == "all":
            candidates = shared
        else:
            known = views[caller]
            if known is None:
                known = views[caller] = [Seen(each) for each in range(instances)]
            candidates = known
        one = candidates[int(draw() * instances)] if choose == "random" else pick_two(draw, candidates, _cost(now))
        one.in_flight += 1
        ended_at = max(now, free_at[one.number]) + rng.expovariate(1 / WORK_S)
        free_at[one.number] = ended_at
        heapq.heappush(under_way, (ended_at, number, now, one))
        if number >= calls:
            answers.append(ended_at - now)
    answers.sort()
    return Waits(sum(answers) / len(answers) / WORK_S, answers[int(len(answers) * 0.99)] / WORK_S)


def _cost(now: float) -> Callable[[Seen], float]:
    def cost(seen: Seen) -> float:
        return call_cost(seen.in_flight, seen.latency.value(now))

    return cost


def compare(callers: int, instances: int, *, seed: int = 1, calls: int = CALLS) -> dict[str, Waits]:
    """Three ways to choose: "own", as mesh does; "random"; and "all", as if callers knew what all have under way."""
    return {how: _play(callers, instances, seed, calls, how) for how in ("own", "random", "all")}
