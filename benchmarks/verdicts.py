"""What mesh promises of its speed and size, held against the figures.

Owns: the promises, and whether they are kept.
Leaves to others: the figures (results), showing the verdicts (table, page).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Sections = Mapping[str, Any]


@dataclass(frozen=True)
class Promise:
    """One row.

    Attributes:
        sense: "least": the value must be at least `bound`; "most": at most.
        unit: "×" for a ratio, else what the value is counted in.
        value: from the sections; raises KeyError where they do not tell.
    """

    what: str
    sense: Literal["least", "most"]
    bound: float
    unit: str
    value: Callable[[Sections], float]


@dataclass(frozen=True)
class Verdict:
    """A promise and what was measured; `measured` and `reached` are None where nothing was."""

    promise: Promise
    measured: float | None
    reached: bool | None

    @property
    def needed(self) -> str:
        return f"{'≥' if self.promise.sense == 'least' else '≤'} {_number(self.promise.bound, self.promise.unit)}"

    @property
    def got(self) -> str:
        return "–" if self.measured is None else _number(self.measured, self.promise.unit)

    @property
    def word(self) -> str:
        return "not measured" if self.reached is None else "reached" if self.reached else "not reached"


def _number(value: float, unit: str) -> str:
    return f"{value:.3g}{unit}" if unit == "×" else f"{value:.3g} {unit}"


def _ahead(section: str, load: str, by: str, *keys: str) -> Callable[[Sections], float]:
    """mesh against the best of some contestants, which are one product in several settings."""

    def ratio(sections: Sections) -> float:
        contestants = sections[section]["contestants"]
        speeds = {key: one["loads"][load][by] for key, one in contestants.items() if load in one["loads"]}
        theirs = [speeds[key] for key in keys if key in speeds]
        if not theirs:
            raise KeyError(keys)
        return float(speeds["mesh"] / max(theirs))

    return ratio


def _against(key: str, load: str) -> Callable[[Sections], float]:
    return _ahead("rpc", load, "calls_per_s", key)


def _publishing(callers: int, *keys: str) -> Callable[[Sections], float]:
    return _ahead("publish", f"one-{callers}", "calls_per_s", *keys)


def _running(*keys: str) -> Callable[[Sections], float]:
    return _ahead("tasks", "many", "tasks_per_s", *keys)


def _at(*path: str) -> Callable[[Sections], float]:
    def value(sections: Sections) -> float:
        found: Any = sections
        for name in path:
            found = found[name]
        return float(found)

    return value


RABBITMQ = ("rabbitmq", "rabbitmq_quorum")
CELERY = ("celery_solo", "celery_prefork")
TASKIQ = ("taskiq_stream", "taskiq_list")

PROMISES = (
    Promise("64 callers against Moleculer over TCP", "least", 2, "×", _against("moleculer", "small-64")),
    Promise("64 callers against nats-py", "least", 3, "×", _against("nats_py", "small-64")),
    Promise("64 callers against grpc.aio", "least", 15, "×", _against("grpc_aio", "small-64")),
    Promise("1,000 callers against Moleculer over TCP", "least", 2, "×", _against("moleculer", "small-1000")),
    # One caller: calls per second are the inverse of the mean round trip, so this is the latency that it sees.
    Promise("one caller against nats-py", "least", 1, "×", _against("nats_py", "small-1")),
    Promise("one caller against Moleculer over TCP", "least", 1, "×", _against("moleculer", "small-1")),
    Promise("64 callers against the raw loop", "least", 0.5, "×", _against("raw", "small-64")),
    Promise("1,000 callers against the raw loop", "least", 0.5, "×", _against("raw", "small-1000")),
    Promise("HTTP through gateway and worker against plain aiohttp", "least", 0.9, "×", _at("http", "ratio")),
    Promise("memory of the heaviest idle worker (Pss)", "most", 45, "MB", _at("memory", "worker_mb")),
    Promise("a worker from exec to ready", "most", 1, "s", _at("startup", "worker", "seconds")),
    Promise("`mesh up` on an installed machine", "most", 5, "s", _at("startup", "up", "seconds")),
    Promise("HTTP beside 2,000 idle connections against none", "least", 0.9, "×", _at("idle", "ratio")),
    Promise("durable publishing, 64 callers, against RabbitMQ", "least", 5, "×", _publishing(64, *RABBITMQ)),
    Promise("durable publishing, 256 callers, against RabbitMQ", "least", 5, "×", _publishing(256, *RABBITMQ)),
    # Against nats-server as it comes, which confirms what a power cut still takes; the table has both.
    Promise("durable publishing, 64 callers, against JetStream", "least", 2, "×", _publishing(64, "jetstream")),
    Promise("durable publishing, 256 callers, against JetStream", "least", 2, "×", _publishing(256, "jetstream")),
    Promise("tasks end to end against Celery with Redis", "least", 5, "×", _running(*CELERY)),
    Promise("tasks end to end against taskiq with Redis", "least", 1.5, "×", _running(*TASKIQ)),
)


def judge(sections: Sections) -> list[Verdict]:
    """Every promise, in order."""
    verdicts = []
    for promise in PROMISES:
        try:
            measured = promise.value(sections)
        except (KeyError, TypeError, ZeroDivisionError):
            verdicts.append(Verdict(promise, None, None))
            continue
        reached = measured >= promise.bound if promise.sense == "least" else measured <= promise.bound
        verdicts.append(Verdict(promise, measured, reached))
    return verdicts
