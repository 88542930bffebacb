"""The metrics of one process, in the form in which they are sent.

Owns: the types. As plain maps (msgspec.to_builtins) they are the answer of `$worker.metrics`.
Leaves to others: measuring (metrics, process), showing (exposition, `mesh top`).

All counts are since the start of the process and only grow, except those described as current.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from mesh.telemetry.identity import ProcessIdentity

_WELL_FORMED: Final = re.compile(r"[a-z][a-z0-9_]*", re.ASCII)
#: Metric names that the page uses for every process and method.
_TAKEN: Final = re.compile(r"worker_up|build_info|service_info|in_flight|requests?|requests?_.*|process_.*", re.ASCII)
#: Suffixes with a meaning in Prometheus' text format.
_ENDING: Final = re.compile(r".*(_total|_count|_sum|_bucket|_created|_info)", re.ASCII)


def name_is_well_formed(name: str) -> bool:
    """Whether it is a valid name of a metric or a label: small letters, digits and `_`."""
    return _WELL_FORMED.fullmatch(name) is not None


def name_is_taken(name: str) -> bool:
    """Whether a counter or gauge with this name would conflict with another metric on the page."""
    return _TAKEN.fullmatch(name) is not None or bool(reserved_ending(name))


def reserved_ending(name: str) -> str:
    """The suffix of a name that Prometheus reserves ("_total"); "" when it has none."""
    match = _ENDING.fullmatch(name)
    return match[1] if match else ""


class MethodSample(msgspec.Struct, frozen=True):
    """The calls of one method on one side.

    Attributes:
        side: "client" (calls made), "server" (calls answered), "http" (requests answered) or "mirror" (copies of calls
            answered).
        in_flight: current number of calls in progress.
        count: ended calls, successful or failed.
        total_s: their total duration in seconds.
        buckets: how many took at most `Snapshot.bounds[i]` and more than the bound before; the last: more than all.
        errors: failed calls by error code.
    """

    side: str
    service: str
    method: str
    in_flight: int
    count: int
    total_s: float
    buckets: list[int]
    errors: dict[str, int] = {}


class NamedSample(msgspec.Struct, frozen=True, omit_defaults=True):
    """One counter or gauge. `name` is without the prefix `mesh_` and the suffix `_total`, which Prometheus sees."""

    name: str
    value: float
    labels: dict[str, str] = {}
    help: str = ""


class ServiceSample(msgspec.Struct, frozen=True, omit_defaults=True):
    """A service that the process runs: its version, and whether the process is a canary."""

    service: str
    version: str = ""
    canary: bool = False


class ProcessSample(msgspec.Struct, frozen=True):
    """The current resource usage of the process. None: unknown on this operating system.

    Attributes:
        pss_bytes: proportional set size: shared pages divided among the processes that share them, so that the sum over
            all processes is their real memory usage.
    """

    pid: int
    uptime_s: float
    cpu_s: float
    threads: int
    resident_bytes: int | None = None
    pss_bytes: int | None = None
    open_fds: int | None = None


class ForeignFamily(msgspec.Struct, frozen=True, omit_defaults=True):
    """One metric in prometheus_client's own registry, from an application or one of its libraries.

    Attributes:
        type: the type in Prometheus: "counter", "gauge", "histogram", "summary", …
        samples: (name, labels, value).
    """

    name: str
    type: str
    help: str
    samples: list[tuple[str, dict[str, str], float]]


class Snapshot(msgspec.Struct, frozen=True):
    """All metrics of one process. `bounds` are the upper bounds of the buckets in seconds, in rising order."""

    bounds: list[float]
    process: ProcessSample
    methods: list[MethodSample] = []
    counters: list[NamedSample] = []
    gauges: list[NamedSample] = []
    identity: ProcessIdentity = ProcessIdentity()
    foreign: list[ForeignFamily] = []
    services: list[ServiceSample] = []
