"""Metrics of a process, cheap enough to count everything.

Owns: the counters of this process and their snapshot.
Leaves to others: timing a call (the caller), asking the other processes (gateway), Prometheus' text (exposition).

Everything belongs to one event loop: no locks. Code in threads reports through the loop.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import msgspec

from mesh.clock import Clock, LoopClock
from mesh.telemetry.foreign import foreign_families
from mesh.telemetry.identity import this_process
from mesh.telemetry.logs import get_logger
from mesh.telemetry.process import read_process
from mesh.telemetry.snapshot import (
    MethodSample,
    NamedSample,
    ServiceSample,
    Snapshot,
    name_is_taken,
    name_is_well_formed,
    reserved_ending,
)

#: Upper bounds in seconds: from a call within one host to the default deadline, two or three per decade.
BOUNDS: Final = (
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
)

#: The label for everything beyond MOST_SERIES.
OTHER: Final = "other"

#: The maximum number of methods, or of label sets of counters, of a process. Names may come from requests; a scanner
#: that requests a million names must not fill the memory of this process or of Prometheus.
MOST_SERIES: Final = 2000
MOST_CODES: Final = 64

log = get_logger(__name__)

Labels = tuple[tuple[str, str], ...]


class MethodStats:
    """The calls of one method on one side. Keep the object, and call `begin` and `end`: each costs a few additions."""

    __slots__ = ("buckets", "errors", "in_flight", "method", "service", "side", "total_s")

    def __init__(self, side: str, service: str, method: str) -> None:
        self.side = side
        self.service = service
        self.method = method
        #: The number of calls in progress.
        self.in_flight = 0
        #: The total duration of ended calls in seconds.
        self.total_s = 0.0
        #: Ended calls by duration, as `MethodSample.buckets`.
        self.buckets = [0] * (len(BOUNDS) + 1)
        #: Failed calls by error code.
        self.errors: dict[str, int] = {}

    @property
    def count(self) -> int:
        """The number of ended calls, successful or failed."""
        return sum(self.buckets)

    def begin(self) -> None:
        """Count the begin of a call; exactly one `end` must follow."""
        self.in_flight += 1

    def end(self, seconds: float, code: str = "") -> None:
        """Count the end of a call after `seconds`, with the error `code`, or "" for success."""
        self.in_flight -= 1
        self.total_s += seconds
        self.buckets[bisect_left(BOUNDS, seconds)] += 1
        if code:
            errors = self.errors
            if code not in errors and len(errors) >= MOST_CODES:
                code = OTHER
            errors[code] = errors.get(code, 0) + 1

    def sample(self) -> MethodSample:
        """The current counts."""
        return MethodSample(
            side=self.side,
            service=self.service,
            method=self.method,
            in_flight=self.in_flight,
            count=self.count,
            total_s=self.total_s,
            buckets=self.buckets.copy(),
            errors=self.errors.copy(),
        )


class Counter:
    """A number that only grows. Keep it and call `add` on it."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0

    def add(self, by: float = 1) -> None:
        """Count `by` more; 0 or more."""
        self.value += by


class Recorder:
    """The metrics of one process.

    Args:
        clock: measures the uptime, which begins now.
        most_series: the maximum number of methods, and of counters; further ones are counted together as "other".
    """

    def __init__(self, clock: Clock | None = None, *, most_series: int = MOST_SERIES) -> None:
        self._clock: Clock = clock if clock is not None else LoopClock()
        self._began_at = self._clock.now()
        self._most_series = most_series
        self._methods: dict[tuple[str, str, str], MethodStats] = {}
        self._counters: dict[tuple[str, Labels], Counter] = {}
        self._gauges: dict[tuple[str, Labels], Callable[[], float]] = {}
        self._totals: dict[tuple[str, Labels], Callable[[], float]] = {}
        self._help: dict[str, str] = {}
        #: The services of this process, for the metric that shows their versions.
        self.services: list[ServiceSample] = []
        self._gauge_errors = self.counter("metric_errors", "Gauges that raised when they were read.")
        # Failed gauges that were logged: log each only once, as the page is fetched every few seconds.
        self._broken: set[str] = set()

    def method(self, side: str, service: str, method: str) -> MethodStats:
        """The stats of one method; always the same object for the same names.

        Args:
            side: "client" for calls made, "server" for calls answered, "http" for requests answered.
        """
        key = (side, service, method)
        stats = self._methods.get(key)
        if stats is None:
            if len(self._methods) >= self._most_series and key != (side, OTHER, OTHER):
                return self.method(side, OTHER, OTHER)
            stats = self._methods[key] = MethodStats(*key)
        return stats

    def counter(self, name: str, /, help: str = "", **labels: str) -> Counter:
        """The counter with this name and these labels; always the same object for the same ones.

        Args:
            name: small letters, digits and `_`, without the prefix `mesh_`, which is added for Prometheus. The suffix
                `_total` is Prometheus's own for counters: "orders" and "orders_total" are one counter.
            help: a one-line description.

        Raises:
            ValueError: a name does not have this form, is reserved by mesh or Prometheus, or is used by a gauge.
        """
        name = name.removesuffix("_total")
        key = (name, tuple(sorted(labels.items())))
        counter = self._counters.get(key)
        if counter is None:
            self._check(name, labels, self._gauges)
            if len(self._counters) >= self._most_series and labels:
                others = dict.fromkeys(labels, OTHER)
                if others != labels:
                    return self.counter(name, help, **others)
            counter = self._counters[key] = Counter()
        if help:
            self._help[name] = help
        return counter

    def count(self, name: str, by: float = 1, /, **labels: str) -> None:
        """Add `by` to the counter with this name and these labels. On a hot path keep the `counter` instead.

        Raises:
            ValueError: as `counter`.
        """
        self.counter(name, **labels).value += by

    def gauge(self, name: str, fn: Callable[[], float], /, help: str = "", **labels: str) -> None:
        """Register `fn`, which every snapshot calls for a number that may rise and fall. It replaces an earlier one.

        Args:
            name: as for `counter`.
            fn: must be quick; called on the event loop. When it raises, the gauge is left out of that snapshot, and the
                counter `metric_errors` is increased; the first error is logged.

        Raises:
            ValueError: a name does not have this form, is reserved by mesh or Prometheus, or is used by a counter.
        """
        self._check(name, labels, (*self._counters, *self._totals))
        self._gauges[name, tuple(sorted(labels.items()))] = fn
        if help:
            self._help[name] = help

    def total(self, name: str, fn: Callable[[], float], /, help: str = "", **labels: str) -> None:
        """Register `fn`, which every snapshot reads as a counter: for a growing number that other code counts.

        Args:
            name, fn, help: as for `gauge`.

        Raises:
            ValueError: as `counter`.
        """
        name = name.removesuffix("_total")
        self._check(name, labels, self._gauges)
        self._totals[name, tuple(sorted(labels.items()))] = fn
        if help:
            self._help[name] = help

    def snapshot(self) -> dict[str, Any]:
        """All current metrics, as plain maps, lists, strings and numbers, in the form of `snapshot.Snapshot`."""
        gauges, totals = self._read(self._gauges), self._read(self._totals)
        taken = Snapshot(
            bounds=list(BOUNDS),
            process=read_process(self._clock.now() - self._began_at),
            methods=[stats.sample() for stats in self._methods.values()],
            identity=this_process(),
            foreign=foreign_families(),
            counters=[
                NamedSample(name, counter.value, dict(labels), self._help.get(name, ""))
                for (name, labels), counter in self._counters.items()
            ]
            + totals,
            gauges=gauges,
            services=self.services,
        )
        plain: dict[str, Any] = msgspec.to_builtins(taken)
        return plain

    def _read(self, read: Mapping[tuple[str, Labels], Callable[[], float]]) -> list[NamedSample]:
        samples = []
        for (name, labels), fn in tuple(read.items()):
            try:
                value = float(fn())
            except Exception:
                # One broken gauge must not break the whole page.
                self._gauge_errors.add()
                if name not in self._broken:
                    self._broken.add(name)
                    log.warning("gauge.failed", gauge=name, exc_info=True)
            else:
                samples.append(NamedSample(name, value, dict(labels), self._help.get(name, "")))
        return samples

    @staticmethod
    def _check(name: str, labels: Mapping[str, str], others: Iterable[tuple[str, Labels]]) -> None:
        for each in (name, *labels):
            if not name_is_well_formed(each):
                raise ValueError(f'"{each}" cannot name a metric or label; use lower-case letters, digits and "_"')
        if ending := reserved_ending(name):
            raise ValueError(
                f'metric "{name}": names do not end in "{ending}", which Prometheus adds by itself '
                "to counters, histograms and summaries; leave it out"
            )
        if name_is_taken(name):
            raise ValueError(
                f'metric "{name}": mesh itself exports a metric of this name for every process; choose another name'
            )
        if any(name == taken for taken, _ in others):
            raise ValueError(f'metric "{name}" is already used by a metric of another type; choose another name')


def render(snapshots: Iterable[tuple[Mapping[str, str], Mapping[str, Any] | None]]) -> tuple[bytes, str]:
    """One Prometheus page from the snapshots of many processes: see `exposition.render`."""
    # Imported here: only processes that render a page need prometheus_client.
    from mesh.telemetry import exposition

    return exposition.render(snapshots)
