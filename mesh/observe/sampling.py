"""The current activity of this host's processes, from the difference of two samples of their counters.

Owns: requesting counters from workers, and computing rates, durations and processor shares from two answers.
Leaves to others: counting (telemetry), data of the operating system (usage), using the results (autoscale, top).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from itertools import accumulate
from typing import Any, Final, NamedTuple

import msgspec

from mesh.errors import MeshError
from mesh.node.node import Node
from mesh.observe.readiness import Readiness
from mesh.observe.usage import Usage, usage
from mesh.telemetry.snapshot import MethodSample, Snapshot

#: A worker with a loop that is blocked for longer is shown without its counters, with the kernel's data only.
ANSWER_S: Final = 1.0
#: The sides that count as a process' own work: calls that it answers, over the mesh or over HTTP.
SIDES: Final = ("server", "http")


class Sample(NamedTuple):
    """The activity of one process between the previous sample and this one.

    Attributes:
        services: its services in the registry; empty when it is not registered.
        answered: whether it returned its counters.
        in_flight: calls in progress now, including waiting calls.
        waiting: calls that wait for a slot now.
        rate, errors: completed and failed calls per second.
        mean_s, p99_s: their durations; 0.0 when no call ended.
        cpu: cores used, including descendants.
        demand: cores that it would have used without waiting for a core.
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
    """Samples the processes of this host periodically."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._readiness = Readiness(node)
        self._before: dict[int, _Before] = {}

    async def look(self, pids: Iterable[int]) -> dict[int, Sample]:
        """The activity of each of these processes since the previous sample; rates are 0 in its first sample."""
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
        # When a thread ends, its waiting time disappears from the sum.
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
    """The upper bound of the bucket that contains this quantile; the last bound for values beyond it."""
    total = sum(buckets)
    if total <= 0:
        return 0.0
    for place, reached in enumerate(accumulate(buckets)):
        if reached >= share * total:
            return bounds[min(place, len(bounds) - 1)]
    return bounds[-1]
