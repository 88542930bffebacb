"""What one process measured, as it travels to whoever shows it.

Owns: the shapes. As plain maps (msgspec.to_builtins) they are what `$worker.metrics` answers.
Leaves to others: measuring (metrics, process), showing (exposition, `mesh top`).

All counts are since the start of the process and only grow, but those said to be of now.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from mesh.telemetry.identity import ProcessIdentity

_WELL_FORMED: Final = re.compile(r"[a-z][a-z0-9_]*", re.ASCII)
#: What the page says of every process and method by itself.
_TAKEN: Final = re.compile(r"worker_up|build_info|in_flight|requests?|requests?_.*|process_.*", re.ASCII)
#: Endings to which Prometheus' text gives a meaning.
_ENDING: Final = re.compile(r".*(_total|_count|_sum|_bucket|_created|_info)", re.ASCII)


def name_is_well_formed(name: str) -> bool:
    """Whether it may name a metric or a label: small letters, digits and `_`."""
    return _WELL_FORMED.fullmatch(name) is not None


def name_is_taken(name: str) -> bool:
    """Whether a counter or gauge of that name would be mistaken for something else on the page."""
    return _TAKEN.fullmatch(name) is not None or bool(reserved_ending(name))


def reserved_ending(name: str) -> str:
    """The ending of a name that Prometheus keeps for itself ("_total"); "" when it has none."""
    match = _ENDING.fullmatch(name)
    return match[1] if match else ""


class MethodSample(msgspec.Struct, frozen=True):
    """The calls of one method, seen from one side.

    Attributes:
        side: "client" (calls made), "server" (calls answered) or "http" (requests answered).
        in_flight: begun and not ended, now.
        count: ended, well or badly.
        total_s: seconds that they took together.
        buckets: how many took at most `Snapshot.bounds[i]` and more than the bound before; the last one, more than all.
        errors: how many ended badly, by error code.
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
    """One counter or gauge. `name` is without the `mesh_` before and the `_total` behind that Prometheus sees."""

    name: str
    value: float
    labels: dict[str, str] = {}
    help: str = ""


class ProcessSample(msgspec.Struct, frozen=True):
    """The process itself, now. None where the operating system does not tell.

    Attributes:
        pss_bytes: proportional set size: shared pages divided among those who share them, so that the sum over all
            processes is what they really take.
    """

    pid: int
    uptime_s: float
    cpu_s: float
    threads: int
    resident_bytes: int | None = None
    pss_bytes: int | None = None
    open_fds: int | None = None


class ForeignFamily(msgspec.Struct, frozen=True, omit_defaults=True):
    """One metric of prometheus_client's own registry, which an application or a library of it uses.

    Attributes:
        type: as Prometheus has it: "counter", "gauge", "histogram", "summary", …
        samples: (name, labels, value).
    """

    name: str
    type: str
    help: str
    samples: list[tuple[str, dict[str, str], float]]


class Snapshot(msgspec.Struct, frozen=True):
    """Everything that one process measured. `bounds` are the upper bounds of the buckets, in seconds, rising."""

    bounds: list[float]
    process: ProcessSample
    methods: list[MethodSample] = []
    counters: list[NamedSample] = []
    gauges: list[NamedSample] = []
    identity: ProcessIdentity = ProcessIdentity()
    foreign: list[ForeignFamily] = []
