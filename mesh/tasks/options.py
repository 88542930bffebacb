"""What may be said of a task, where it is declared and where it is deferred, and reading the ways to write it.

Owns: the options with their defaults, "1s..1m" and "50/s", and refusing nonsense with a sentence that names the option.
Leaves to others: the decorators (service.decorators), what a worker does with them (runner, service.workload).
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
from mesh.errors import BadArguments
from mesh.policy.backoff import Backoff
from mesh.tasks.contract import DEFAULT_PRIORITY, PRIORITIES

#: Exceptions after which trying again is useless.
Fatal = type[Exception] | Iterable[type[Exception]]

DEFAULT_BACKOFF: Final = "1s..1m"
#: Workers that die with a task before that is given up: a task that kills them must not go on for ever.
DEFAULT_LOST: Final = 3
#: A rate alone may be used up in bursts of so many seconds' worth: finer than that no timer is worth setting.
BURST_S: Final = 0.1
#: What a duration may be at most: longer ones are mistakes, and would not fit where instants are kept.
LONGEST_S: Final = 100 * 365 * 86400.0

_RATE: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*/\s*(.+?)\s*")


class Attempts(msgspec.Struct, frozen=True):
    """How often, how long and how many at once: what tasks and durable subscriptions have in common.

    Attributes:
        retries: attempts after the first; None takes the configured number.
        first_s, most_s: the wait after the first failure, and the longest one.
        timeout_s: of one attempt; None takes the configured one.
        slots: how many a worker runs at once; None takes the configured number.
        concurrency: how many run at once over the whole mesh; 0 for no limit.
        rate_per_s, burst: how many begin per second over the whole mesh; 0 for no limit.
        most_lost: a task whose worker died this often while it ran is dead.
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
        """(retries, timeout_s, slots), with what the author left open taken from the settings."""
        return (
            settings.retries if self.retries is None else self.retries,
            settings.timeout_s if self.timeout_s is None else self.timeout_s,
            settings.slots if self.slots is None else self.slots,
        )


class TaskMark(msgspec.Struct, frozen=True):
    """`@task` and its options.

    Attributes:
        keep_s: how long a finished job is kept when its `defer` does not say; None takes the configured time.
        priority: of a job when its `defer` does not say.
        check_result: whether the answer must be what the annotation promises; None takes the configured rule.
        expose: whether a gateway defers it for anyone; None takes the service's.
    """

    attempts: Attempts = Attempts()
    keep_s: float | None = None
    priority: int = DEFAULT_PRIORITY
    offload: Offload = ""
    check_result: bool | None = None
    expose: bool | None = None


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
    """The options of `@task` and its kin; `what` names the decorator in errors.

    Raises:
        BadDeclaration: an option is nonsense; the message names it.
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
            raise BadDeclaration(f"{what}: burst needs a rate: without one everything may begin at once")
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
    """Seconds of 2.5, "2s" or "1m30s".

    Raises:
        BadDeclaration: it is not a positive time; `what` names it.
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
    BadDeclaration: it is not a whole number from `least` to `most`.
    """
    if type(value) is not int or not least <= value <= most:
        upto = f" to {most}" if most < 2**31 - 1 else ""
        raise BadDeclaration(f"{what} {value!r} is not a whole number from {least}{upto}")


def check_priority(what: str, value: int) -> None:
    """Raises:
    BadDeclaration: it is none of 0 to 9.
    """
    check_count(what, value, most=PRIORITIES[-1])


def read_backoff(what: str, value: Duration) -> tuple[float, float]:
    """(first, most) of "1s..1m": it doubles from the one to the other; of "5s" or 5: always that.

    Raises:
        BadDeclaration: it is neither.
    """
    first, dots, most = value.partition("..") if isinstance(value, str) else (value, "", "")
    first_s = read_seconds(what, first.strip() if isinstance(first, str) else first)
    most_s = read_seconds(what, most.strip()) if dots else first_s
    if most_s < first_s:
        raise BadDeclaration(f'{what} {value!r}: the longest wait comes last, like "1s..1m"')
    return first_s, most_s


def read_rate(what: str, value: str | float) -> float:
    """Per second, of "50/s", "100/m", "1000/h", "10/5s" or 50.

    Raises:
        BadDeclaration: it is none of these.
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
            raise BadDeclaration(f"{what}: {kind!r} is no exception class")
    return kinds


# --- where a task is deferred -----------------------------------------------------------------------------


def due_at(target: str, delay: Duration | None, at: datetime | float | None, now: float) -> float:
    """The instant before which a task shall not run, wall clock; 0 for at once.

    Raises:
        BadArguments: both are given, or one is no time.
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
    """A length of time in seconds, given where a task is deferred.

    Raises:
        BadArguments: it is none; the message names target and option.
    """
    try:
        seconds = values.read_seconds(value)
    except ValueError:
        seconds = math.nan
    if not (0 if zero else 1e-9) <= seconds <= LONGEST_S:
        most = values.show_duration(LONGEST_S)
        raise BadArguments(f'{target}: {option}={value!r} is not a time like 2.5, "10s" or "1m30s" (at most {most})')
    return seconds
