"""Counting what happens, cheaply enough to count everything.

Owns: the counters of this process and their snapshot.
Leaves to others: timing a call (whoever makes it), asking the other processes (gateway), Prometheus' text (exposition).

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

#: Where what is too much for its own place is counted.
OTHER: Final = "other"

#: Different methods, or label sets of counters, that a process tells apart. Names may come from requests; a scanner
#: that asks for a million of them must not fill this process' memory, nor Prometheus'.
MOST_SERIES: Final = 2000
MOST_CODES: Final = 64

log = get_logger(__name__)

Labels = tuple[tuple[str, str], ...]


class MethodStats:
    """The calls of one method, seen from one side. Keep it, and call `begin` and `end` on it: a few additions each."""

    __slots__ = ("buckets", "errors", "in_flight", "method", "service", "side", "total_s")

    def __init__(self, side: str, service: str, method: str) -> None:
        self.side = side
        self.service = service
        self.method = method
        #: Begun and not ended.
        self.in_flight = 0
        #: Seconds that the ended ones took together.
        self.total_s = 0.0
        #: By duration, as `MethodSample.buckets`.
        self.buckets = [0] * (len(BOUNDS) + 1)
        #: Ended badly, by error code.
        self.errors: dict[str, int] = {}

    @property
    def count(self) -> int:
        """How many have ended, well or badly."""
        return sum(self.buckets)

    def begin(self) -> None:
        """A call begins; exactly one `end` follows."""
        self.in_flight += 1

    def end(self, seconds: float, code: str = "") -> None:
        """A call ended after `seconds`, with the error `code`, or "" when it went well."""
        self.in_flight -= 1
        self.total_s += seconds
        self.buckets[bisect_left(BOUNDS, seconds)] += 1
        if code:
            errors = self.errors
            if code not in errors and len(errors) >= MOST_CODES:
                code = OTHER
            errors[code] = errors.get(code, 0) + 1

    def sample(self) -> MethodSample:
        """What has been counted so far."""
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
    """Everything that one process counts.

    Args:
        clock: tells the uptime, which begins now.
        most_series: different methods, and different counters, told apart; the rest are counted together as "other".
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
        self._gauge_errors = self.counter("metric_errors", "Gauges that raised when they were read.")
        # Gauges that have been complained of: once is enough, a page is fetched every few seconds.
        self._broken: set[str] = set()

    def method(self, side: str, service: str, method: str) -> MethodStats:
        """The counts of one method; always the same object for the same names.

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
        """The counter of that name and those labels; always the same object for the same ones.

        Args:
            name: small letters, digits and `_`, without the prefix `mesh_`, which Prometheus sees. `_total` at its end
                is Prometheus's own suffix for counters: "orders" and "orders_total" are one counter.
            help: one line on what is counted.

        Raises:
            ValueError: a name is not of that form, is taken by mesh or Prometheus, or is a gauge's already.
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
        """Count `by` more under that name and those labels. On a hot path keep the `counter` instead.

        Raises:
            ValueError: as `counter`.
        """
        self.counter(name, **labels).value += by

    def gauge(self, name: str, fn: Callable[[], float], /, help: str = "", **labels: str) -> None:
        """Have `fn` asked at every snapshot for a number that may rise and fall. A second one replaces the first.

        Args:
            name: as for `counter`.
            fn: quick, and called on the event loop. When it raises, the gauge is left out of that snapshot, and the
                counter `metric_errors` tells; the first time it is logged.

        Raises:
            ValueError: a name is not of that form, is taken by mesh or Prometheus, or is a counter's already.
        """
        self._check(name, labels, (*self._counters, *self._totals))
        self._gauges[name, tuple(sorted(labels.items()))] = fn
        if help:
            self._help[name] = help

    def total(self, name: str, fn: Callable[[], float], /, help: str = "", **labels: str) -> None:
        """Have `fn` read at every snapshot as a counter: for a number that something else counts and that only grows.

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
        """Everything so far, as plain maps, lists, strings and numbers: the shape of `snapshot.Snapshot`."""
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
        )
        plain: dict[str, Any] = msgspec.to_builtins(taken)
        return plain

    def _read(self, read: Mapping[tuple[str, Labels], Callable[[], float]]) -> list[NamedSample]:
        samples = []
        for (name, labels), fn in tuple(read.items()):
            try:
                value = float(fn())
            except Exception:
                # One broken gauge must not take the whole page with it.
                self._gauge_errors.add()
                if name not in self._broken:
                    self._broken.add(name)
                    log.warning("gauge raised", gauge=name, exc_info=True)
            else:
                samples.append(NamedSample(name, value, dict(labels), self._help.get(name, "")))
        return samples

    @staticmethod
    def _check(name: str, labels: Mapping[str, str], others: Iterable[tuple[str, Labels]]) -> None:
        for each in (name, *labels):
            if not name_is_well_formed(each):
                raise ValueError(f'"{each}" cannot name a metric or label; use small letters, digits and "_"')
        if ending := reserved_ending(name):
            raise ValueError(
                f'metric "{name}": names do not end in "{ending}", which Prometheus adds by itself '
                "to counters, histograms and summaries; leave it out"
            )
        if name_is_taken(name):
            raise ValueError(
                f'metric "{name}": mesh shows a metric of this name for every process; choose another name'
            )
        if any(name == taken for taken, _ in others):
            raise ValueError(f'metric "{name}" is counted and gauged; give one of them another name')


def render(snapshots: Iterable[tuple[Mapping[str, str], Mapping[str, Any] | None]]) -> tuple[bytes, str]:
    """One Prometheus page from the snapshots of many processes: see `exposition.render`."""
    # Here and not above: only who shows a page pays for importing prometheus_client.
    from mesh.telemetry import exposition

    return exposition.render(snapshots)
