"""How many workers a service should have, from what was seen of them.

Owns: the arithmetic of each measure, and the patience that keeps the number from swinging.
Leaves to others: measuring (supervision.sampling), starting and draining workers (supervision.scale), the loop around
both (supervision.autoscale).

Each measure says how many workers would bring it to its target; the greatest counts. Then:

- a band: within a tenth of the target nothing changes, and one worker leaves only if the rest would be at 85 % of it;
- up, more must have been wanted at every look for `up_after_s`: the least of those numbers is taken, at most twice as
  many as there are;
- down, the greatest number that was wanted in the last `down_after_s` is taken, at most half of them at once;
- after each change `cooldown_s` pass, in which new workers start up and the measures come to mean something again.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

#: A need above so many times the workers there are adds some.
UP_FROM: Final = 1.1
#: What remains after some have left must be at no more than this share of its target.
DOWN_TO: Final = 0.85
#: In one step, at most so many times as many.
STEP: Final = 2


class Look(NamedTuple):
    """What was seen of one service on this host.

    Attributes:
        at: when; monotonic seconds.
        workers: how many there are to be.
        ready: those of them that answered.
        cpu: cores that they use together, or would, had they not to wait for one.
        in_flight: calls begun and not ended, those that wait included.
        waiting: calls that wait for a place.
        latency_s: the mean time of the answers since the look before; 0.0 when there were none.
    """

    at: float
    workers: int
    ready: int
    cpu: float = 0.0
    in_flight: int = 0
    waiting: int = 0
    latency_s: float = 0.0


class Rule(NamedTuple):
    """What is wanted of one service.

    Attributes:
        cpu: the share of a core that a worker is to use.
        cores: of this host; more workers than share them out cannot each have theirs.
        in_flight: the calls that a worker is to have under way; 0: any number.
        latency_s: the mean time of an answer above which workers are added; 0.0: any.
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
    """What has to be remembered from one look to the next.

    Attributes:
        wanted: (when, how many to go up to, how many to go down to) of the looks that still count, the oldest first.
        since: when the first look was.
    """

    wanted: tuple[tuple[float, int, int], ...] = ()
    since: float | None = None
    changed_at: float = -math.inf


class Decision(NamedTuple):
    """How many there should be, and why, in words for people."""

    workers: int
    why: str


def decide(look: Look, rule: Rule, memory: Memory) -> tuple[Decision, Memory]:
    """How many workers there should be now; and what to remember for the next look.

    It depends on nothing else, and changes nothing.
    """
    if look.workers == 0:
        return Decision(0, "scaled to 0 by hand; left alone"), Memory()
    if not rule.minimum <= look.workers <= rule.maximum:
        count = min(max(look.workers, rule.minimum), rule.maximum)
        return Decision(count, f"{look.workers} is outside {rule.minimum}–{rule.maximum}"), Memory(changed_at=look.at)
    if look.ready == 0:
        # What was seen before an outage says nothing of what comes after it.
        silent = Memory(changed_at=memory.changed_at)
        return Decision(look.workers, "none of its workers answers; nothing can be measured"), silent
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
    """Workers, in fractions, that would bring every measure to its target; and how that came about."""
    # Beyond the cores there are, more workers would only wait for each other.
    needs = [(min(look.cpu, rule.cores) / rule.cpu, f"cpu {look.cpu:.2f} of {rule.cpu:g} each")]
    if rule.in_flight:
        needs.append((look.in_flight / rule.in_flight, f"in flight {look.in_flight} of {rule.in_flight} each"))
    if look.waiting:
        # Those that run fill the workers there are: as many more are needed as wait beside them.
        running = max(1, look.in_flight - look.waiting)
        needs.append((look.ready * (1 + look.waiting / running), f"waiting {look.waiting}"))
    if rule.latency_s and look.latency_s > rule.latency_s:
        # Only ever a reason for more: that answers are quick says nothing of how quick they would be with fewer.
        needs.append((look.ready * look.latency_s / rule.latency_s, f"latency {look.latency_s * 1000:.0f} ms"))
    need = max(each for each, _ in needs)
    return need, ", ".join(f"{words} → {each:.1f}" for each, words in needs)


def _aims(need: float, count: int, rule: Rule) -> tuple[int, int]:
    """Where this need would go up to, and where down to, were nothing else known; `count` for no further."""
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
            return count, f"stays {count}: {up} are wanted for {lasts_s:.0f} s, that must last {rule.up_after_s:g} s"
        aim = min(least, count * STEP)
        return aim, f"up from {count} to {aim}"
    if down < count:
        assert memory.since is not None
        known_s = look.at - memory.since
        if known_s < rule.down_after_s:
            return (
                count,
                f"stays {count}: {down} would do, that must last {rule.down_after_s:g} s ({known_s:.0f} s so far)",
            )
        aim = max(max(each[2] for each in memory.wanted), -(-count // STEP))
        if aim >= count:
            return count, f"stays {count}: {down} would do, but not in all of the last {rule.down_after_s:g} s"
        return aim, f"down from {count} to {aim}"
    return count, f"stays {count}"


def _lasting(memory: Memory, now: float, count: int) -> tuple[float, int]:
    """For how long every look up to now has wanted more than `count`, and the least that they wanted."""
    began, least = now, memory.wanted[-1][1]
    for at, up, _ in reversed(memory.wanted):
        if up <= count:
            break
        began, least = at, min(least, up)
    return now - began, least
