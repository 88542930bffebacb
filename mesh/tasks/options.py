"""The options of a task, where it is declared and where it is deferred, and parsing their notations.

Owns: the options with their defaults, "1s..1m" and "50/s", and errors for invalid values that name the option.
Leaves to others: the decorators (service.decorators), what a worker does with them (runner, worker.workload).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from datetime import datetime
from typing import Any, Final

import msgspec

from mesh.calls.checks import Duration as Duration
from mesh.calls.declared import BadDeclaration
from mesh.calls.method import Offload
from mesh.config import values
from mesh.config.settings import TaskSettings
from mesh.discovery.record import EdgePolicy
from mesh.errors import BadArguments
from mesh.policy.backoff import Backoff
from mesh.tasks.contract import DEFAULT_PRIORITY, PRIORITIES

#: Exceptions after which a retry is useless.
Fatal = type[Exception] | Iterable[type[Exception]]

DEFAULT_BACKOFF: Final = "1s..1m"
#: Workers that may die while they run a task before it is dead: a task that kills them must not run for ever.
DEFAULT_LOST: Final = 3
#: A rate without a burst allows bursts of so many seconds' worth: finer timers are not worth their cost.
BURST_S: Final = 0.1
#: Longest duration: a longer one is a mistake, and would not fit where instants are stored.
LONGEST_S: Final = 100 * 365 * 86400.0

_RATE: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*/\s*(.+?)\s*")


class Attempts(msgspec.Struct, frozen=True):
    """Retries, timeouts and limits: the options that tasks and durable subscriptions have in common.

    Attributes:
        retries: attempts after the first; None takes the configured number.
        first_s, most_s: the wait after the first failure, and the longest one.
        timeout_s: of one attempt; None takes the configured one.
        slots: how many attempts a worker runs at once; None takes the configured number.
        concurrency: how many attempts run at once over the whole mesh; 0 for no limit.
        rate_per_s, burst: how many attempts begin per second, and at once, over the whole mesh; rate 0 for no limit.
        most_lost: a task is dead after so many workers have died while they ran it.
        fatal: exceptions after which no other attempt is made.
    """

    retries: int | None = None
    first_s: float = 1.0
    most_s: float = 60.0
    timeout_s: float | None = None
    slots: int | None = None
    concurrency: int = 0
    rate_per_s: float = 0.0
    burst: int = 1
    most_lost: int = DEFAULT_LOST
    fatal: tuple[type[Exception], ...] = ()

    @property
    def backoff(self) -> Backoff:
        """The waits between attempts."""
        return Backoff(self.first_s, self.most_s)

    def filled(self, settings: TaskSettings) -> tuple[int, float, int]:
        """(retries, timeout_s, slots), with missing values taken from the settings."""
        return (
            settings.retries if self.retries is None else self.retries,
            settings.timeout_s if self.timeout_s is None else self.timeout_s,
            settings.slots if self.slots is None else self.slots,
        )


class TaskMark(msgspec.Struct, frozen=True):
    """`@task` and its options.

    Attributes:
        keep_s: retention of a finished job, unless `defer` sets another; None takes the configured time.
        priority: of a job, unless `defer` sets another.
        check_result: whether the answer is checked against the annotation; None takes the configured rule.
        expose: whether a gateway defers the task for anyone; None takes the service's.
        edge: what the task asks of gateways at /tasks.
    """

    attempts: Attempts = Attempts()
    keep_s: float | None = None
    priority: int = DEFAULT_PRIORITY
    offload: Offload = ""
    check_result: bool | None = None
    expose: bool | None = None
    edge: EdgePolicy | None = None


def read_attempts(
    what: str,
    *,
    retries: int | None = None,
    backoff: Duration = DEFAULT_BACKOFF,
    timeout: Duration | None = None,
    slots: int | None = None,
    concurrency: int = 0,
    rate: str | float | None = None,
    burst: int | None = None,
    lost: int = DEFAULT_LOST,
    fatal: Fatal = (),
) -> Attempts:
    """Read the options of `@task` and similar decorators; `what` names the decorator in errors.

    Raises:
        BadDeclaration: an option is invalid; the message names it.
    """
    if retries is not None:
        check_count(f"{what}: retries", retries, most=1000)
    if slots is not None:
        check_count(f"{what}: slots", slots, least=1, most=10_000)
    check_count(f"{what}: concurrency", concurrency)
    check_count(f"{what}: lost", lost, least=1, most=1000)
    first_s, most_s = read_backoff(f"{what}: backoff", backoff)
    rate_per_s = 0.0 if rate is None else read_rate(f"{what}: rate", rate)
    if burst is not None:
        if rate is None:
            raise BadDeclaration(f"{what}: burst requires rate")
        check_count(f"{what}: burst", burst, least=1)
    return Attempts(
        retries=retries,
        first_s=first_s,
        most_s=most_s,
        timeout_s=None if timeout is None else read_seconds(f"{what}: timeout", timeout),
        slots=slots,
        concurrency=concurrency,
        rate_per_s=rate_per_s,
        burst=max(1, math.ceil(rate_per_s * BURST_S)) if burst is None else burst,
        most_lost=lost,
        fatal=_read_fatal(f"{what}: fatal", fatal),
    )


def read_seconds(what: str, value: Duration) -> float:
    """Read 2.5, "2s" or "1m30s" as seconds.

    Raises:
        BadDeclaration: the value is not a positive time; `what` names it.
    """
    try:
        seconds = values.read_seconds(value)
    except ValueError as exc:
        reason = f" ({exc})" if str(exc) else ""
        like = ' like "10s", "250ms" or "1m30s"' if isinstance(value, str) else ""
        raise BadDeclaration(f"{what} {value!r} is not a {'' if like else 'positive '}time{like}{reason}") from exc
    if seconds <= 0:
        raise BadDeclaration(f"{what} {value!r} is not a positive time")
    return seconds


def check_count(what: str, value: int, *, least: int = 0, most: int = 2**31 - 1) -> None:
    """Raises:
    BadDeclaration: the value is not a whole number from `least` to `most`.
    """
    if type(value) is not int or not least <= value <= most:
        upto = f" to {most}" if most < 2**31 - 1 else ""
        raise BadDeclaration(f"{what} {value!r} is not a whole number from {least}{upto}")


def check_priority(what: str, value: int) -> None:
    """Raises:
    BadDeclaration: the value is not a whole number from 0 to 9.
    """
    check_count(what, value, most=PRIORITIES[-1])


def read_backoff(what: str, value: Duration) -> tuple[float, float]:
    """Read a backoff as (first, most): "1s..1m" doubles from first to most; "5s" or 5 is a constant wait.

    Raises:
        BadDeclaration: the value has neither form.
    """
    first, dots, most = value.partition("..") if isinstance(value, str) else (value, "", "")
    first_s = read_seconds(what, first.strip() if isinstance(first, str) else first)
    most_s = read_seconds(what, most.strip()) if dots else first_s
    if most_s < first_s:
        raise BadDeclaration(f'{what} {value!r}: the longest wait must come last, like "1s..1m"')
    return first_s, most_s


def read_rate(what: str, value: str | float) -> float:
    """Read "50/s", "100/m", "1000/h", "10/5s" or 50 as a rate per second.

    Raises:
        BadDeclaration: the value has none of these forms.
    """
    if isinstance(value, str):
        found = _RATE.fullmatch(value)
        try:
            per = found[2] if found else ""
            per_second = (
                float(found[1]) / values.read_duration(per if per[:1].isdigit() else f"1{per}") if found else math.nan
            )
        except (ValueError, ZeroDivisionError):
            per_second = math.nan
    else:
        per_second = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if not 0 < per_second < math.inf:
        raise BadDeclaration(f'{what} {value!r} is not a rate like "50/s", "100/m" or "10/5s"')
    return per_second


def _read_fatal(what: str, value: Fatal) -> tuple[type[Exception], ...]:
    kinds = (value,) if isinstance(value, type) else tuple(value)
    for kind in kinds:
        if not (isinstance(kind, type) and issubclass(kind, Exception)):
            raise BadDeclaration(f"{what}: {kind!r} is not an exception class")
    return kinds


# --- where a task is deferred -----------------------------------------------------------------------------


def due_at(target: str, delay: Duration | None, at: datetime | float | None, now: float) -> float:
    """The earliest start of a task, wall clock; 0 for at once.

    Raises:
        BadArguments: both `delay` and `at` are given, or one of them is not a time.
    """
    if delay is not None:
        if at is not None:
            raise BadArguments(f"{target}: give a delay or an instant (at), not both")
        delay_s = span(target, "delay", delay, zero=True)
        return now + delay_s if delay_s else 0.0
    if at is None:
        return 0.0
    if isinstance(at, datetime):
        if at.tzinfo is None:
            raise BadArguments(f"{target}: at={at.isoformat()!r} has no time zone; add one, like tzinfo=timezone.utc")
        return at.timestamp()
    if isinstance(at, bool) or not isinstance(at, int | float) or not 0 <= at < now + LONGEST_S:
        raise BadArguments(f"{target}: at={at!r} is neither a datetime nor seconds since 1970")
    return float(at)


def span(target: str, option: str, value: Any, *, zero: bool = False) -> float:
    """Read a duration that was given to `defer`, in seconds.

    Raises:
        BadArguments: the value is not a duration; the message names target and option.
    """
    try:
        seconds = values.read_seconds(value)
    except ValueError:
        seconds = math.nan
    if not (0 if zero else 1e-9) <= seconds <= LONGEST_S:
        most = values.show_duration(LONGEST_S)
        raise BadArguments(f'{target}: {option}={value!r} is not a time like 2.5, "10s" or "1m30s" (at most {most})')
    return seconds
