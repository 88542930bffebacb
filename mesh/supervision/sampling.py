"""What this host's processes do now: two looks at their counters, and the difference between them.

Owns: asking workers for their counters, and rates, times and processor shares from two answers.
Leaves to others: counting (telemetry), the operating system's part (usage), what follows from it (autoscale, top).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from itertools import accumulate
from typing import Any, Final, NamedTuple

import msgspec

from mesh.errors import MeshError
from mesh.service.node import Node
from mesh.supervision.readiness import Readiness
from mesh.supervision.usage import Usage, usage
from mesh.telemetry.snapshot import MethodSample, Snapshot

#: A worker whose loop is held up for longer is shown without its counters; what the kernel knows is there all the same.
ANSWER_S: Final = 1.0
#: Whose calls are a process' own work: those that it answers, over the mesh or over HTTP.
SIDES: Final = ("server", "http")


class Sample(NamedTuple):
    """One process, between the look before and this one.

    Attributes:
        services: what it runs, as the registry says; empty when it is not there.
        answered: whether it told its counters.
        in_flight: calls begun and not ended, now; those that wait included.
        waiting: calls that wait for a place, now.
        rate, errors: calls that ended per second, and those of them that ended badly.
        mean_s, p99_s: how long they took; 0.0 when none ended.
        cpu: cores used, descendants included.
        demand: cores that it would have used, had it not had to wait for one.
    """

    pid: int
    services: tuple[str, ...] = ()
    instance: str = ""
    answered: bool = False
    in_flight: int = 0
    waiting: int = 0
    rate: float = 0.0
    errors: float = 0.0
    ended: int = 0
    mean_s: float = 0.0
    p99_s: float = 0.0
    cpu: float = 0.0
    demand: float = 0.0
    memory_bytes: int = 0


class _Before(NamedTuple):
    at: float
    snapshot: Snapshot | None
    usage: Usage | None


class Sampler:
    """Looks again and again at the processes of this host."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._readiness = Readiness(node)
        self._before: dict[int, _Before] = {}

    async def look(self, pids: Iterable[int]) -> dict[int, Sample]:
        """What each of these processes did since the look before; rates are 0 at the first look at one."""
        pids = [pid for pid in pids if pid]
        known = self._readiness.instances()
        asked = [pid for pid in pids if pid in known]
        told = await asyncio.gather(*(self._ask(known[pid][0].id) for pid in asked))
        snapshots = dict(zip(asked, told, strict=True))
        taken = await asyncio.to_thread(usage, pids)
        now = self._node.clock.now()
        samples = {}
        looked = {}
        for pid in pids:
            after = _Before(now, snapshots.get(pid), taken.get(pid))
            instances = known.get(pid, [])
            sample = _between(pid, self._before.get(pid), after)
            samples[pid] = sample._replace(
                services=tuple(sorted({each.service for each in instances})),
                instance=instances[0].id if instances else "",
            )
            looked[pid] = after
        self._before = looked
        return samples

    async def _ask(self, instance: str) -> Snapshot | None:
        try:
            told: Any = await self._node.call("$worker.metrics", instance=instance, timeout=ANSWER_S)
            return msgspec.convert(told, Snapshot)
        except (MeshError, msgspec.ValidationError):
            return None


def _between(pid: int, before: _Before | None, after: _Before) -> Sample:
    sample = Sample(pid, memory_bytes=after.usage.memory_bytes if after.usage else 0)
    seconds = after.at - before.at if before else 0.0
    if before and before.usage and after.usage and seconds > 0:
        cpu = max(0.0, after.usage.cpu_s - before.usage.cpu_s) / seconds
        # A thread that ended takes its waiting with it.
        queued = max(0.0, after.usage.queued_s - before.usage.queued_s) / seconds
        sample = sample._replace(cpu=cpu, demand=cpu + queued)
    if after.snapshot is None:
        return sample
    methods = _own(after.snapshot)
    waiting = sum(each.value for each in after.snapshot.gauges if each.name == "calls_waiting")
    sample = sample._replace(
        answered=True, in_flight=sum(each.in_flight for each in methods.values()), waiting=int(waiting)
    )
    if before is None or before.snapshot is None or seconds <= 0:
        return sample
    earlier = _own(before.snapshot)
    ended, bad, total_s = 0, 0, 0.0
    buckets = [0] * (len(after.snapshot.bounds) + 1)
    for key, each in methods.items():
        old = earlier.get(key)
        ended += each.count - (old.count if old else 0)
        total_s += each.total_s - (old.total_s if old else 0.0)
        bad += sum(each.errors.values()) - (sum(old.errors.values()) if old else 0)
        for place, number in enumerate(each.buckets[: len(buckets)]):
            buckets[place] += number - (old.buckets[place] if old else 0)
    return sample._replace(
        rate=ended / seconds,
        errors=bad / seconds,
        ended=ended,
        mean_s=total_s / ended if ended > 0 else 0.0,
        p99_s=_quantile(buckets, after.snapshot.bounds, 0.99),
    )


def _own(snapshot: Snapshot) -> dict[tuple[str, str, str], MethodSample]:
    return {
        (each.side, each.service, each.method): each
        for each in snapshot.methods
        if each.side in SIDES and not each.service.startswith("$")
    }


def _quantile(buckets: list[int], bounds: list[float], share: float) -> float:
    """The upper bound of the bucket in which that share of all is reached; the last bound for what is beyond it."""
    total = sum(buckets)
    if total <= 0:
        return 0.0
    for place, reached in enumerate(accumulate(buckets)):
        if reached >= share * total:
            return bounds[min(place, len(bounds) - 1)]
    return bounds[-1]
