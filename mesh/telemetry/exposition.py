"""One Prometheus page from the snapshots of many processes.

Owns: the names and labels for Prometheus, and adding up samples with the same name and labels.
Leaves to others: collecting the snapshots (gateway), the text format itself (prometheus_client).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Any, Final

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Metric, generate_latest
from prometheus_client.registry import Collector

from mesh.telemetry.snapshot import (
    ForeignFamily,
    MethodSample,
    NamedSample,
    ProcessSample,
    Snapshot,
    name_is_taken,
    name_is_well_formed,
)

PREFIX: Final = "mesh_"

#: name, kind, help, and the field of ProcessSample.
PROCESS: Final = (
    ("process_resident_bytes", "gauge", "Resident memory of the process.", "resident_bytes"),
    ("process_pss_bytes", "gauge", "Memory of the process, shared pages divided among their users.", "pss_bytes"),
    ("process_cpu_seconds", "counter", "Processor time used, user and system.", "cpu_s"),
    ("process_open_fds", "gauge", "Open file descriptors.", "open_fds"),
    ("process_threads", "gauge", "Python threads.", "threads"),
    ("process_uptime_seconds", "gauge", "Seconds since the process began.", "uptime_s"),
)

_BAD_IN_LABEL = re.compile(r"[^a-zA-Z0-9_]", re.ASCII)

LabelSet = tuple[tuple[str, str], ...]


def render(snapshots: Iterable[tuple[Mapping[str, str], Mapping[str, Any] | None]]) -> tuple[bytes, str]:
    """The page for all of them.

    Every sample has the labels of its process, and its own labels (which take precedence): `side`, `service` and
    `method` for calls. Samples with the same name and labels are added up.

    It costs some 8 µs of processor time per line: with hundreds of instances run it in a thread.

    Args:
        snapshots: for each process its labels (for example worker, host, service) and the result of
            `Recorder.snapshot` there; None for a process that did not answer. `worker` is an id that changes with each
            start: samples have `process` instead, the name that supervisor gives, and `mesh_build_info` has both.
            A malformed snapshot (another release, a broken peer) is left out; `mesh_worker_up` is 0 in both cases.

    Returns:
        The text, and its Content-Type.
    """
    page = _Page()
    for labels, snapshot in snapshots:
        page.add(labels, snapshot)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(page)
    return generate_latest(registry), CONTENT_TYPE_LATEST


class _Calls:
    """Samples of one method under one label set, added up."""

    __slots__ = ("buckets", "count", "errors", "in_flight", "total_s")

    def __init__(self) -> None:
        self.in_flight = 0
        self.count = 0
        self.total_s = 0.0
        # By upper bound, not cumulative: buckets of two releases with different bounds still add up correctly.
        self.buckets: dict[float, int] = {}
        self.errors: dict[str, int] = {}

    def add(self, sample: MethodSample, bounds: list[float]) -> None:
        self.in_flight += sample.in_flight
        self.total_s += sample.total_s
        for bound, n in zip((*bounds, math.inf), sample.buckets, strict=True):
            self.buckets[bound] = self.buckets.get(bound, 0) + n
            # Count here instead of using the sample's count: for Prometheus, buckets and count must agree.
            self.count += n
        for code, n in sample.errors.items():
            self.errors[code] = self.errors.get(code, 0) + n


class _Page(Collector):
    def __init__(self) -> None:
        self._up: dict[LabelSet, int] = {}
        self._calls: dict[LabelSet, _Calls] = {}
        self._info: dict[LabelSet, int] = {}
        self._services: dict[LabelSet, int] = {}
        #: Kind, help and values by sample name of each metric of an application.
        self._foreign: dict[str, tuple[str, str, dict[tuple[str, LabelSet], float]]] = {}
        #: Kind, help and values of each counter or gauge, by its full name.
        self._named: dict[str, tuple[str, str, dict[LabelSet, float]]] = {}

    def add(self, labels: Mapping[str, str], snapshot: Mapping[str, Any] | None) -> None:
        taken = _read(snapshot)
        mine = {_label_name(name): str(value) for name, value in labels.items()}
        # Series have a name that survives a restart; only mesh_build_info has the id, which does not.
        worker = mine.pop("worker", "")
        if not mine.get("process"):
            mine["process"] = (taken.identity.name if taken is not None else "") or worker
        # When two processes have equal label sets, one answer is enough for `up`.
        key = _key(mine)
        self._up[key] = max(self._up.get(key, 0), taken is not None)
        if taken is None:
            return
        identity = taken.identity
        about = {"worker": worker, "version": identity.version, "release": identity.release, "python": identity.python}
        self._info[_key({**mine, **about})] = 1
        for each in taken.services:
            told = {"service": each.service, "version": each.version, "release": identity.release}
            self._services[_key({**mine, **told, "canary": "yes" if each.canary else "no"})] = 1
        for family in taken.foreign:
            self._add_foreign(mine, family)
        for sample in taken.methods:
            own = {"side": sample.side, "service": sample.service, "method": sample.method}
            self._calls.setdefault(_key({**mine, **own}), _Calls()).add(sample, taken.bounds)
        for kind, samples in (("counter", taken.counters), ("gauge", taken.gauges)):
            for named in samples:
                # Names are checked when metrics are created; check again, as another release may have created them.
                if name_is_well_formed(named.name) and not name_is_taken(named.name):
                    self._add_named(kind, mine, named)
        self._add_process(mine, taken.process)

    def _add_foreign(self, mine: dict[str, str], family: ForeignFamily) -> None:
        if family.name.startswith(PREFIX):
            return
        kind, _, values = self._foreign.setdefault(family.name, (family.type, family.help or family.name, {}))
        if kind == family.type:
            for name, labels, value in family.samples:
                # Without _label_name: `le` and `quantile` are valid in an application's histograms and summaries.
                key = name, _key({**mine, **labels})
                values[key] = values.get(key, 0) + value

    def _add_process(self, mine: dict[str, str], process: ProcessSample) -> None:
        for name, kind, text, field in PROCESS:
            value: float | None = getattr(process, field)
            if value is not None:
                self._add_named(kind, mine, NamedSample(name, value, help=text))

    def _add_named(self, kind: str, mine: dict[str, str], sample: NamedSample) -> None:
        name = PREFIX + sample.name
        known_kind, text, values = self._named.setdefault(name, (kind, sample.help, {}))
        if known_kind != kind:
            # A name cannot be both on one page. When two releases differ, the first is shown.
            return
        if sample.help and not text:
            self._named[name] = (kind, sample.help, values)
        key = _key({**mine, **{_label_name(n): v for n, v in sample.labels.items()}})
        values[key] = values.get(key, 0) + sample.value

    def collect(self) -> Iterator[Metric]:
        up = Metric("mesh_worker_up", "Whether the process reported its metrics.", "gauge")
        for key, value in self._up.items():
            up.add_sample(up.name, dict(key), value)
        yield up
        info = Metric("mesh_build_info", "Which release each process runs, and its worker id.", "gauge")
        for key, value in self._info.items():
            info.add_sample(info.name, dict(key), value)
        yield info
        if self._services:
            services = Metric("mesh_service_info", "Which version of its services each process runs.", "gauge")
            for key, value in self._services.items():
                services.add_sample(services.name, dict(key), value)
            yield services
        yield from self._collect_calls()
        for name, (kind, text, values) in sorted(self._named.items()):
            family = Metric(name, text or name.removeprefix(PREFIX).replace("_", " "), kind)
            suffix = "_total" if kind == "counter" else ""
            for key, number in values.items():
                family.add_sample(name + suffix, dict(key), number)
            yield family
        for name, (kind, text, samples) in sorted(self._foreign.items()):
            foreign = Metric(name, text, kind)
            for (sample, key), number in samples.items():
                foreign.add_sample(sample, dict(key), number)
            yield foreign

    def _collect_calls(self) -> Iterator[Metric]:
        total = Metric("mesh_requests", "Calls that ended, with a result or an error.", "counter")
        errors = Metric("mesh_request_errors", "Calls that ended with an error, by error code.", "counter")
        in_flight = Metric("mesh_in_flight", "Calls in progress.", "gauge")
        seconds = Metric("mesh_request_seconds", "How long calls took, in seconds.", "histogram")
        for key, calls in self._calls.items():
            labels = dict(key)
            total.add_sample("mesh_requests_total", labels, calls.count)
            in_flight.add_sample(in_flight.name, labels, calls.in_flight)
            for code, n in calls.errors.items():
                errors.add_sample("mesh_request_errors_total", {**labels, "code": code}, n)
            bounds = sorted(calls.buckets)
            for bound, n in zip(bounds, accumulate(calls.buckets[b] for b in bounds), strict=True):
                seconds.add_sample("mesh_request_seconds_bucket", {**labels, "le": _le(bound)}, n)
            seconds.add_sample("mesh_request_seconds_sum", labels, calls.total_s)
            seconds.add_sample("mesh_request_seconds_count", labels, calls.count)
        yield from (total, errors, in_flight, seconds)


def _read(snapshot: Mapping[str, Any] | None) -> Snapshot | None:
    if snapshot is None:
        return None
    try:
        taken = msgspec.convert(snapshot, Snapshot)
    except msgspec.ValidationError:
        return None
    places = len(taken.bounds) + 1
    rising = all(a < b for a, b in zip(taken.bounds, taken.bounds[1:], strict=False))
    if not rising or any(len(sample.buckets) != places for sample in taken.methods):
        return None
    return taken


def _le(bound: float) -> str:
    return "+Inf" if math.isinf(bound) else repr(bound)


def _key(labels: Mapping[str, str]) -> LabelSet:
    # For Prometheus an empty label equals a missing one.
    return tuple(sorted((name, value) for name, value in labels.items() if value))


def _label_name(name: str) -> str:
    """A label name that is allowed on the page: "le" and a leading "__" are reserved by Prometheus."""
    clean = _BAD_IN_LABEL.sub("_", name)
    if not clean or clean == "le" or clean.startswith("__") or clean[0].isdigit():
        return f"label_{clean.lstrip('_')}"
    return clean
