"""Autoscaling: how many workers a service should have, computed from samples.

Owns: the computation for each measure, and the delays that prevent oscillation.
Leaves to others: sampling (observe.sampling), starting and draining workers (deploy.scale), the loop around
both (deploy.autoscale).

For each measure, the number of workers that would bring it to its target is computed; the largest number counts. Then:

- a dead band: up to a tenth above the target nothing changes, and workers are removed only if the rest would be at 85 %
  of the target at most;
- up: every sample of the last `up_after_s` must need more workers. The smallest of these numbers is taken, at most
  twice the current number;
- down: the largest number needed in the last `down_after_s` is taken, at least half of the current number;
- after each change, nothing changes for `cooldown_s`, in which new workers start and the measures become valid again.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

#: Workers are added when the need exceeds the current number by this factor.
UP_FROM: Final = 1.1
#: Workers are removed only if the rest is then at most at this share of the target.
DOWN_TO: Final = 0.85
#: The largest factor by which one step changes the number, in both directions.
STEP: Final = 2


class Look(NamedTuple):
    """A sample of one service on this host.

    Attributes:
        at: when it was taken; monotonic seconds.
        workers: how many workers there should be.
        ready: how many of them answered.
        cpu: cores that they use together, or would use if they did not have to wait for one.
        in_flight: calls begun and not ended, including those that wait.
        waiting: calls that wait for a place.
        latency_s: the mean latency of the answers since the previous sample; 0.0 when there were none.
    """

    at: float
    workers: int
    ready: int
    cpu: float = 0.0
    in_flight: int = 0
    waiting: int = 0
    latency_s: float = 0.0


class Rule(NamedTuple):
    """The scaling targets of one service.

    Attributes:
        cpu: the share of a core that a worker should use.
        cores: cores of this host, which limit the need for workers.
        in_flight: calls that a worker should have under way; 0: no target.
        latency_s: the mean latency above which workers are added; 0.0: no target.
    """

    minimum: int
    maximum: int
    cpu: float = 0.7
    in_flight: int = 0
    latency_s: float = 0.0
    up_after_s: float = 4.0
    down_after_s: float = 60.0
    cooldown_s: float = 6.0
    cores: float = math.inf


class Memory(NamedTuple):
    """The state kept from one sample to the next.

    Attributes:
        wanted: (when, number to scale up to, number to scale down to) of the samples that still count, oldest first.
        since: when the first sample was taken.
        changed_at: when the number of workers last changed.
    """

    wanted: tuple[tuple[float, int, int], ...] = ()
    since: float | None = None
    changed_at: float = -math.inf


class Decision(NamedTuple):
    """How many workers there should be, and a human-readable reason."""

    workers: int
    why: str


def decide(look: Look, rule: Rule, memory: Memory) -> tuple[Decision, Memory]:
    """How many workers there should be now, and the state for the next sample. A pure function."""
    if look.workers == 0:
        return Decision(0, "scaled to 0 by hand; not changed"), Memory()
    if not rule.minimum <= look.workers <= rule.maximum:
        count = min(max(look.workers, rule.minimum), rule.maximum)
        return Decision(count, f"{look.workers} is outside {rule.minimum}–{rule.maximum}"), Memory(changed_at=look.at)
    if look.ready == 0:
        # Samples from before an outage say nothing about the load after it.
        silent = Memory(changed_at=memory.changed_at)
        return Decision(look.workers, "no worker answers, so nothing can be measured"), silent
    need, measures = _need(look, rule)
    up, down = _aims(need, look.workers, rule)
    since = look.at if memory.since is None else memory.since
    kept = tuple(each for each in memory.wanted if each[0] > look.at - max(rule.up_after_s, rule.down_after_s))
    memory = Memory((*kept, (look.at, up, down)), since, memory.changed_at)
    count, why = _patient(look, rule, memory)
    if count != look.workers:
        memory = memory._replace(changed_at=look.at)
    return Decision(count, f"{measures}; {why}"), memory


def _need(look: Look, rule: Rule) -> tuple[float, str]:
    """The number of workers, with fractions, that would bring every measure to its target, and the reason in words."""
    # With more workers than the cores can serve, they would only wait for each other.
    needs = [(min(look.cpu, rule.cores) / rule.cpu, f"cpu {look.cpu:.2f} of {rule.cpu:g} each")]
    if rule.in_flight:
        needs.append((look.in_flight / rule.in_flight, f"in flight {look.in_flight} of {rule.in_flight} each"))
    if look.waiting:
        # The running calls fill the current workers, so the need grows by the ratio of waiting to running calls.
        running = max(1, look.in_flight - look.waiting)
        needs.append((look.ready * (1 + look.waiting / running), f"waiting {look.waiting}"))
    if rule.latency_s and look.latency_s > rule.latency_s:
        # Only a reason to scale up: a low latency does not show what it would be with fewer workers.
        needs.append((look.ready * look.latency_s / rule.latency_s, f"latency {look.latency_s * 1000:.0f} ms"))
    need = max(each for each, _ in needs)
    return need, ", ".join(f"{words} → {each:.1f}" for each, words in needs)


def _aims(need: float, count: int, rule: Rule) -> tuple[int, int]:
    """The numbers to scale up to and down to for this need alone; scaling up to `count` means no change."""
    up = math.ceil(need - 1e-9) if need > count * UP_FROM else count
    down = math.ceil(need / DOWN_TO - 1e-9)
    return min(max(up, count), rule.maximum), max(down, rule.minimum)


def _patient(look: Look, rule: Rule, memory: Memory) -> tuple[int, str]:
    count = look.workers
    if (rest := memory.changed_at + rule.cooldown_s - look.at) > 0:
        return count, f"stays {count}: changed {look.at - memory.changed_at:.0f} s ago, {rest:.0f} s to go"
    _, up, down = memory.wanted[-1]
    if up > count:
        lasts_s, least = _lasting(memory, look.at, count)
        if lasts_s < rule.up_after_s:
            return count, f"stays {count}: {up} are wanted for {lasts_s:.0f} s, must last {rule.up_after_s:g} s"
        aim = min(least, count * STEP)
        return aim, f"up from {count} to {aim}"
    if down < count:
        assert memory.since is not None
        known_s = look.at - memory.since
        if known_s < rule.down_after_s:
            return (
                count,
                f"stays {count}: {down} would do, must last {rule.down_after_s:g} s ({known_s:.0f} s so far)",
            )
        aim = max(max(each[2] for each in memory.wanted), -(-count // STEP))
        if aim >= count:
            return count, f"stays {count}: {down} would do, but not in all of the last {rule.down_after_s:g} s"
        return aim, f"down from {count} to {aim}"
    return count, f"stays {count}"


def _lasting(memory: Memory, now: float, count: int) -> tuple[float, int]:
    """For how long every sample up to now has needed more than `count` workers, and the smallest of these numbers."""
    began, least = now, memory.wanted[-1][1]
    for at, up, _ in reversed(memory.wanted):
        if up <= count:
            break
        began, least = at, min(least, up)
    return now - began, least
