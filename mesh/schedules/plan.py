"""When a schedule is due: from cron text in a time zone, or from a period.

Owns: parsing a plan, its due times, and which of them are run when some were missed.
Leaves to others: cron's fields and how they combine (cronsim), time zones (zoneinfo), firing (driver).

Pure: instants are wall-clock seconds since 1970, passed in. A plan has a text form, which an engine stores:
`0 3 * * * Asia/Tokyo` or `every 10s`.

Daylight saving: a time of day that does not exist on that day (02:30 in the night when it becomes 03:00) is due at the
next minute that exists; one that exists twice is due the first time. A plan with an hour or minute that begins with `*`
follows elapsed time: it is due in each hour that exists, and both times in an hour that occurs twice.
"""

from __future__ import annotations

import math
import zoneinfo
from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Final, NamedTuple, Protocol

from cronsim import CronSim, CronSimError

from mesh.calls.declared import BadDeclaration
from mesh.config.values import read_seconds, show_duration
from mesh.schedules.contract import Missed
from mesh.suggest import suggest

#: Maximum number of missed due times that are run or counted.
MOST: Final = 1000
#: A due time is missed when it is later than this. A driver wakes at least this often, and a store restarts faster.
LATE_S: Final = 60.0
#: A shorter period makes no sense with a durable queue.
LEAST_PERIOD_S: Final = 1.0
MOST_PERIOD_S: Final = 366 * 86_400.0

_FIELDS: Final = (
    ("minute", "0-59"),
    ("hour", "0-23"),
    ("day-of-month", "1-31 or L"),
    ("month", "1-12 or JAN-DEC"),
    ("day-of-week", "0-7 or SUN-SAT, 0 and 7 are Sunday"),
)
_NAMED: Final = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_EXAMPLE: Final = 'for example "30 3 * * MON-FRI": at 03:30 from Monday to Friday'


class BadPlan(BadDeclaration):
    """A schedule's plan is malformed, or never due."""


class Plan(Protocol):
    """A schedule's plan.

    Attributes:
        text: the form that an engine stores; `parse` reads it.
    """

    @property
    def text(self) -> str: ...

    def after(self, at: float) -> float | None:
        """The first due time after this instant; None when none will ever come."""

    def last(self, since: float, now: float) -> float | None:
        """The last due time after `since` and not after `now`; None when there is none."""

    def newest(self, since: float, now: float, most: int) -> list[float]:
        """The last `most` due times after `since` and not after `now`, oldest first."""

    def count(self, since: float, now: float, most: int) -> int:
        """How many due times are after `since` and not after `now`; no more than `most` are counted."""


class Cron:
    """Five fields of cron in a time zone.

    A field is `*`, a number, a range `1-5`, a list `1,15`, a step `*/10`; months and days of the week also by their
    English names. `L` is the last day of a month, `LW` its last working day, `FRI#2` its second Friday, `5L` its last
    one. When day of month and day of week are both given (neither begins with `*`), either of them is enough.

    Args:
        expression: the fields, or @hourly, @daily, @weekly, @monthly, @yearly.
        tz: an IANA name, like "Asia/Tokyo".

    Raises:
        BadPlan: the message names the field or zone and its allowed values.
    """

    __slots__ = ("_expression", "_zone", "text")

    def __init__(self, expression: str, tz: str = "UTC") -> None:
        if not isinstance(expression, str):
            raise BadPlan(f"cron {expression!r} is not text; {_EXAMPLE}")
        self._expression = _NAMED.get(expression.strip().lower(), " ".join(expression.split()))
        self._zone = _zone(tz)
        self.text = f"{self._expression} {tz}"
        _check_cron(self._expression)
        if self.after(_ANY_DAY) is None:
            raise BadPlan(f'cron "{expression}" is never due: no year has such a day')

    def __repr__(self) -> str:
        return f"<cron {self.text}>"

    def after(self, at: float) -> float | None:
        return next(self._from(at), None)

    def last(self, since: float, now: float) -> float | None:
        low = self.after(since)
        if low is None or low > now:
            return None
        # `low` is due, and nothing is due after `high` until now. Iterating backwards could be wrong by the hour that
        # daylight saving adds or removes; bisection needs 25 steps for a year.
        high = now
        while high - low > 1.0:
            middle = (low + high) / 2
            found = self.after(middle)
            if found is None or found > now:
                high = middle
            else:
                low = found
        return low

    def newest(self, since: float, now: float, most: int) -> list[float]:
        # At most one due time per minute; when there are fewer, search further back until enough are found.
        span_s = most * 60.0
        while True:
            start = max(since, now - span_s)
            found = deque(self._until(start, now), maxlen=most)
            if len(found) == most or start <= since:
                return list(found)
            span_s *= 4

    def count(self, since: float, now: float, most: int) -> int:
        return sum(1 for _ in islice(self._until(since, now), most))

    def _until(self, since: float, now: float) -> Iterator[float]:
        for due in self._from(since):
            if due > now:
                return
            yield due

    def _from(self, at: float) -> Iterator[float]:
        """Due times after `at`, strictly increasing even across daylight saving."""
        last = at
        for moment in CronSim(self._expression, datetime.fromtimestamp(at, self._zone)):
            due = moment.timestamp()
            if due > last:
                last = due
                yield due


class Every:
    """Periodic, at the multiples of a period since 1970: "every 15m" is due at :00, :15, :30 and :45 (UTC).

    Args:
        period: seconds, or text like "10s"; from a second to a year.

    Raises:
        BadPlan: the period is not such a time.
    """

    __slots__ = ("_period_ms", "text")

    def __init__(self, period: float | str) -> None:
        try:
            seconds = read_seconds(period)
        except ValueError as exc:
            why = f": {exc}" if str(exc) else ""
            raise BadPlan(f'every {period!r} is not a time like "10s" or "15m"{why}') from None
        # Written so that NaN fails too.
        if not LEAST_PERIOD_S <= seconds <= MOST_PERIOD_S:
            raise BadPlan(
                f"every {period!r}: once for the whole mesh, a period may be from {show_duration(LEAST_PERIOD_S)} to "
                f"{show_duration(MOST_PERIOD_S)}; for more often, each instance has @every without once=True"
            )
        self._period_ms = round(seconds * 1000)
        self.text = f"every {show_duration(self._period_ms / 1000)}"

    def __repr__(self) -> str:
        return f"<{self.text}>"

    def after(self, at: float) -> float | None:
        return (self._place(at) + 1) * self._period_ms / 1000

    def last(self, since: float, now: float) -> float | None:
        place = self._place(now)
        return place * self._period_ms / 1000 if place > self._place(since) else None

    def newest(self, since: float, now: float, most: int) -> list[float]:
        last = self._place(now)
        first = max(self._place(since) + 1, last - most + 1)
        return [place * self._period_ms / 1000 for place in range(first, last + 1)]

    def count(self, since: float, now: float, most: int) -> int:
        return min(most, max(0, self._place(now) - self._place(since)))

    def _place(self, at: float) -> int:
        # Whole milliseconds: a float cannot represent 0.1 s exactly, and a due time must map to its own multiple again.
        # A float of this century is exact to a quarter of a microsecond.
        return math.floor(at * 1000 + 0.01) // self._period_ms


class Due(NamedTuple):
    """The due times to handle at an instant.

    Attributes:
        run: due times to run, oldest first.
        to_at: due times up to this one are then handled.
        missed: how many will not be run; counted up to MOST.
    """

    run: list[float]
    to_at: float
    missed: int


def due(plan: Plan, last_at: float, now: float, missed: Missed) -> Due | None:
    """The due times to handle at `now`, after `last_at`; None when there are none.

    Args:
        missed: "once": run the last of them. "all": run each, but no more than the newest MOST. "skip": run the last of
            them, if it is not later than LATE_S.
    """
    last = plan.last(last_at, now)
    if last is None:
        return None
    if missed == "all":
        run = plan.newest(last_at, now, MOST)
        return Due(run, last, plan.count(last_at, run[0], MOST + 1) - 1)
    run = [last] if missed == "once" or now - last <= LATE_S else []
    return Due(run, last, min(MOST, plan.count(last_at, last, MOST + len(run)) - len(run)))


def parse(text: str) -> Plan:
    """Parse the text of a plan that an engine stored.

    Raises:
        BadPlan: the text is not a plan, or only a later version of mesh can read it.
    """
    first, _, rest = text.partition(" ")
    if first == "every":
        return Every(rest)
    expression, _, tz = text.rpartition(" ")
    return Cron(expression, tz)


def stamp(at: float) -> str:
    """An instant for people and for keys: "2026-03-29T01:00:00Z"."""
    moment = datetime.fromtimestamp(round(at * 1000) // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    millis = round(at * 1000) % 1000
    return f"{moment}.{millis:03d}Z" if millis else f"{moment}Z"


# --- what is wrong ----------------------------------------------------------------------------------------

# 2000-01-01: from any day on, fifty years have every combination of day, weekday and leap year.
_ANY_DAY: Final = 946_684_800.0


def _check_cron(expression: str) -> None:
    fields = expression.split()
    if len(fields) != len(_FIELDS):
        if expression.startswith("@"):
            raise BadPlan(f'cron "{expression}" is not one of {", ".join(_NAMED)}')
        names = ", ".join(name for name, _ in _FIELDS)
        seconds = ", without seconds" if len(fields) == len(_FIELDS) + 1 else ""
        raise BadPlan(
            f'cron "{expression}" has {len(fields) or "no"} field{"s" * (len(fields) != 1)} instead of five '
            f"({names}){seconds}; {_EXAMPLE}"
        )
    try:
        CronSim(expression, datetime.fromtimestamp(_ANY_DAY, UTC))
    except (CronSimError, ValueError, AssertionError) as exc:
        # cronsim says "Bad hour".
        at = next((at for at, (name, _) in enumerate(_FIELDS) if str(exc) == f"Bad {name}"), None)
        if at is None:
            raise BadPlan(f'cron "{expression}" cannot be read: {exc}; {_EXAMPLE}') from exc
        name, values = _FIELDS[at]
        if name == "day-of-month" and fields[2].isdigit() and 1 <= int(fields[2]) <= 31:
            raise BadPlan(f'cron "{expression}" is never due: no year has such a day') from exc
        raise BadPlan(
            f'cron "{expression}": "{fields[at]}" is not valid as {name}; use {values}, * for each, 1-5 for a range, '
            f"1,3 for a list or */2 for a step; {_EXAMPLE}"
        ) from exc


def _zone(tz: Any) -> zoneinfo.ZoneInfo:
    try:
        return zoneinfo.ZoneInfo(tz)
    # A name that is a directory of the database, or leads out of it, raises other errors.
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError, TypeError):
        names = sorted(zoneinfo.available_timezones())
        ends = {name.rpartition("/")[2].lower(): name for name in names}
        wanted = str(tz).strip().replace(" ", "_")
        remedy = suggest(ends.get(wanted.lower(), wanted), names, 'use an IANA name, like "Europe/Berlin" or "UTC"')
        raise BadPlan(f"cron: there is no time zone {tz!r}; {remedy}") from None
