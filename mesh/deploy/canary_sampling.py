"""The calls that the two releases of a service answer, from the difference of two samples of their counters.

Owns: asking the workers of all hosts, and assigning their counters to the releases.
Leaves to others: counting (telemetry), judging (policy.canary), which processes are canaries of this roll (canary).

The counters of the answering side are compared, so callers need not count by release, and plain calls cost nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping
from typing import Final, NamedTuple

import msgspec

from mesh.deploy.error_gate import FAULTS
from mesh.discovery.record import Instance
from mesh.discovery.share import share_of
from mesh.errors import MeshError
from mesh.node.node import Node
from mesh.policy.canary import Calls
from mesh.telemetry.metrics import BOUNDS
from mesh.telemetry.snapshot import MethodSample, Snapshot

#: A worker with a loop that is blocked for longer is left out of one sample; its calls are in the next one.
ANSWER_S: Final = 1.0
#: The sides of a canary that count for single methods: calls, and copies of calls.
SERVER, MIRROR = "server", "mirror"

Key = tuple[str, str, str]


class Period(NamedTuple):
    """What ended between two samples.

    Attributes:
        old, new: the calls of the two releases, in the same mixture of methods.
        methods: (old, new) of each method; copies of calls count as calls of the new release.
        silent: canaries that did not answer, by instance id.
        mirrored: copies that were compared, by result.
    """

    old: Calls
    new: Calls
    methods: dict[str, tuple[Calls, Calls]]
    silent: frozenset[str]
    mirrored: dict[str, int]


class Sampling:
    """Samples the workers of some services.

    Args:
        services: their names.
        faults: codes of errors that count as failures, besides those that are always a fault of the instance.
        mirrored: copies of calls are sent, so callers are asked for the results of comparisons, too.
        copies_only: nothing but copies reaches the canaries; they are compared with calls of the same methods.
    """

    def __init__(
        self,
        node: Node,
        services: Collection[str],
        faults: Iterable[str] = (),
        *,
        mirrored: bool = False,
        copies_only: bool = False,
    ) -> None:
        self._node = node
        self._services = frozenset(services)
        self._faults = FAULTS | frozenset(faults)
        self._mirrored = mirrored
        self._copies_only = copies_only
        self._before: dict[str, dict[Key, Calls]] = {}
        self._compared_before: dict[str, dict[str, int]] = {}
        self._begun = False

    def instances(self) -> list[Instance]:
        """The instances of the services, one for each worker."""
        found = {each.worker or each.id: each for name in self._services for each in self._node.table.instances(name)}
        return list(found.values())

    async def look(self, canaries: Collection[str] = ()) -> Period:
        """What ended since the last look; the first one only records the counters.

        Args:
            canaries: the ids of the instances of the new release.
        """
        asked = self.instances()
        others = self._callers(asked) if self._mirrored else []
        snapshots = await asyncio.gather(*(self._ask(each.id) for each in (*asked, *others)))
        sums: dict[tuple[bool, str, str], Calls] = {}
        silent = set()
        before, self._before = self._before, {}
        for instance, snapshot in zip(asked, snapshots, strict=False):
            new = instance.id in canaries
            if snapshot is None:
                if new:
                    silent.add(instance.id)
                if instance.id in before:
                    self._before[instance.id] = before[instance.id]
                continue
            counts = self._before[instance.id] = self._counts(snapshot)
            earlier = before.get(instance.id)
            # The canaries of this roll had no calls before it; of an old worker that is new here, nothing is known.
            if not self._begun or (earlier is None and not new) or (not new and share_of(instance.meta) is not None):
                continue
            for (side, _, method), calls in counts.items():
                key = (new, side, method)
                ended = _less(calls, (earlier or {}).get((side, _, method), Calls()))
                sums[key] = sums.get(key, Calls()).plus(ended)
        mirrored = self._compared(zip((*asked, *others), snapshots, strict=True)) if self._mirrored else {}
        self._begun = True
        return self._period(sums, frozenset(silent), mirrored)

    # --- inside -------------------------------------------------------------------------------------------

    def _period(
        self, sums: Mapping[tuple[bool, str, str], Calls], silent: frozenset[str], mirrored: dict[str, int]
    ) -> Period:
        names = {method for _, _, method in sums}
        methods: dict[str, tuple[Calls, Calls]] = {}
        old = new = Calls()
        for name in names:
            mine = sums.get((False, SERVER, name), Calls())
            called = sums.get((True, SERVER, name), Calls())
            copied = sums.get((True, MIRROR, name), Calls())
            methods[name] = (mine, called.plus(copied))
            if not self._copies_only:
                old, new = old.plus(mine), new.plus(called)
            elif copied.calls:
                old, new = old.plus(mine), new.plus(copied)
        return Period(old, new, methods, silent, mirrored)

    def _counts(self, snapshot: Snapshot) -> dict[Key, Calls]:
        comparable = tuple(snapshot.bounds) == BOUNDS
        return {
            (each.side, each.service, each.method): self._calls(each, comparable)
            for each in snapshot.methods
            if each.side in (SERVER, MIRROR) and each.service in self._services and not each.method.startswith("$")
        }

    def _calls(self, sample: MethodSample, comparable: bool) -> Calls:
        failed = sum(count for code, count in sample.errors.items() if code in self._faults)
        return Calls(sample.count, failed, tuple(sample.buckets) if comparable else ())

    def _callers(self, known: Collection[Instance]) -> list[Instance]:
        """One instance of each other process: it may have sent copies of calls."""
        workers = {each.worker or each.id for each in known}
        found = {each.worker or each.id: each for each in self._node.table if each.endpoint}
        return [each for worker, each in found.items() if worker not in workers]

    def _compared(self, told: Iterable[tuple[Instance, Snapshot | None]]) -> dict[str, int]:
        """The comparisons since the last look, by result."""
        sums: dict[str, int] = {}
        for instance, snapshot in told:
            if snapshot is None:
                continue
            counts: dict[str, int] = {}
            for each in snapshot.counters:
                if each.name == "mirrored" and each.labels.get("service") in self._services:
                    result = each.labels.get("result", "")
                    counts[result] = counts.get(result, 0) + int(each.value)
            worker = instance.worker or instance.id
            # A process that was not there at the first look has compared nothing before.
            earlier = self._compared_before.get(worker, {} if self._begun else counts)
            self._compared_before[worker] = counts
            for result, count in counts.items():
                sums[result] = sums.get(result, 0) + max(0, count - earlier.get(result, 0))
        return {result: count for result, count in sums.items() if count}

    async def _ask(self, instance: str) -> Snapshot | None:
        try:
            told = await self._node.call("$worker.metrics", instance=instance, timeout=ANSWER_S)
            return msgspec.convert(told, Snapshot)
        except (MeshError, msgspec.ValidationError):
            return None


def _less(now: Calls, before: Calls) -> Calls:
    if now.calls < before.calls:
        return now  # the process has been restarted under the same id
    buckets = tuple(a - b for a, b in zip(now.buckets, before.buckets, strict=False)) if before.buckets else now.buckets
    return Calls(now.calls - before.calls, max(0, now.failed - before.failed), buckets)
