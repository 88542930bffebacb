"""schedules.plan: when a schedule is due, and which of the missed due times are run."""

from __future__ import annotations

from datetime import datetime
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.schedules.plan import LATE_S, MOST, BadPlan, Cron, Every, Plan, due, parse, stamp

BERLIN = ZoneInfo("Europe/Berlin")


def at(text: str, zone: ZoneInfo | None = None, fold: int = 0) -> float:
    """The instant of "2026-03-29 02:30" in a zone (UTC when none is given)."""
    return datetime.fromisoformat(text).replace(tzinfo=zone or ZoneInfo("UTC"), fold=fold).timestamp()


def first(plan: Plan, since: float, count: int) -> list[float]:
    """The next due times."""
    found: list[float] = []
    for _ in range(count):
        since = plan.after(since) or 0.0
        found.append(since)
    return found


# --- cron -------------------------------------------------------------------------------------------------


def test_a_time_of_day_is_that_of_its_zone() -> None:
    """03:00 in Tokyo is 18:00 of the day before in Greenwich."""
    plan = Cron("0 3 * * *", "Asia/Tokyo")
    assert [stamp(each) for each in first(plan, at("2026-01-01 00:00"), 2)] == [
        "2026-01-01T18:00:00Z",
        "2026-01-02T18:00:00Z",
    ]


def test_a_due_time_is_not_due_again_after_itself() -> None:
    """`after` is strict, also for what lies a fraction of a second before or after a due time."""
    plan = Cron("0 3 * * *")
    due_at = at("2026-01-01 03:00")
    assert plan.after(due_at - 0.25) == due_at
    assert plan.after(due_at) == due_at + 86400
    assert plan.after(due_at + 0.25) == due_at + 86400


def test_a_time_that_the_night_of_spring_leaves_out_is_due_when_the_clock_goes_on() -> None:
    """02:30 does not exist on 29 March 2026 in Berlin: it is due at 03:00, once, and at 02:30 again the next day."""
    plan = Cron("30 2 * * *", "Europe/Berlin")
    assert first(plan, at("2026-03-28 12:00", BERLIN), 2) == [
        at("2026-03-29 03:00", BERLIN),
        at("2026-03-30 02:30", BERLIN),
    ]


def test_a_time_that_the_night_of_autumn_has_twice_is_due_once() -> None:
    """02:30 exists twice on 25 October 2026 in Berlin: it is due the first time."""
    plan = Cron("30 2 * * *", "Europe/Berlin")
    assert first(plan, at("2026-10-25 00:00", BERLIN), 2) == [
        at("2026-10-25 02:30", BERLIN, fold=0),
        at("2026-10-26 02:30", BERLIN),
    ]
    assert plan.after(at("2026-10-25 02:10", BERLIN, fold=1)) == at("2026-10-26 02:30", BERLIN), "not in the past"


def test_every_hour_is_every_hour_that_there_is() -> None:
    """In spring a day has 23 of them, in autumn 25; none is left out, none is doubled."""
    plan = Cron("0 * * * *", "Europe/Berlin")
    for day, hours in (("2026-03-29", 23), ("2026-10-25", 25), ("2026-06-01", 24)):
        begin = at(f"{day} 00:00", BERLIN)
        found = first(plan, begin - 1, hours + 1)
        assert found == [begin + 3600 * hour for hour in range(hours + 1)]


@pytest.mark.parametrize(
    ("expression", "days"),
    [
        ("0 0 L * *", ["2026-01-31", "2026-02-28", "2026-03-31"]),
        ("0 0 * * FRI#2", ["2026-01-09", "2026-02-13", "2026-03-13"]),
        ("0 0 29 2 *", ["2028-02-29", "2032-02-29", "2036-02-29"]),
        ("0 0 1,15 * *", ["2026-01-01", "2026-01-15", "2026-02-01"]),
        ("0 0 13 * FRI", ["2026-01-02", "2026-01-09", "2026-01-13"]),
        ("@monthly", ["2026-01-01", "2026-02-01", "2026-03-01"]),
        ("@weekly", ["2026-01-04", "2026-01-11", "2026-01-18"]),
    ],
)
def test_what_fields_may_say(expression: str, days: list[str]) -> None:
    """Lists, last days, leap years, and day of month or day of week when both are given."""
    found = first(Cron(expression), at("2025-12-31 12:00"), 3)
    assert [stamp(each) for each in found] == [f"{day}T00:00:00Z" for day in days]


@pytest.mark.parametrize(
    ("expression", "tz", "words"),
    [
        ("61 3 * * *", "UTC", ['"61"', "minute", "0-59"]),
        ("0 24 * * *", "UTC", ['"24"', "hour", "0-23"]),
        ("0 3 32 * *", "UTC", ['"32"', "day-of-month"]),
        ("0 3 * 13 *", "UTC", ['"13"', "month", "JAN-DEC"]),
        ("0 3 * * FUN", "UTC", ['"FUN"', "day-of-week", "SUN-SAT"]),
        ("0 9-3 * * *", "UTC", ['"9-3"', "hour"]),
        ("*/0 * * * *", "UTC", ['"*/0"', "minute"]),
        ("0 3 * *", "UTC", ["4", "minute, hour"]),
        ("0 0 3 * * *", "UTC", ["6", "seconds"]),
        ("", "UTC", ["minute, hour"]),
        ("@reboot", "UTC", ['"@reboot"', "@hourly"]),
        ("0 0 30 2 *", "UTC", ["0 0 30 2 *"]),
        ("0 0 31 4,6 *", "UTC", ["0 0 31 4,6 *"]),
        ("@daily", "Tokyo", ["'Tokyo'", '"Asia/Tokyo"']),
        ("@daily", "Europe/Berln", ['"Europe/Berlin"']),
        ("@daily", "../etc/passwd", ["'../etc/passwd'", "IANA"]),
        ("@daily", None, ["None"]),
        (5, "UTC", ["cron 5"]),
    ],
)
def test_an_error_names_the_field_and_what_it_may_be(expression: str, tz: str, words: list[str]) -> None:
    """Whoever wrote it wrong sees where, and how it is written."""
    with pytest.raises(BadPlan) as caught:
        Cron(expression, tz)
    for word in words:
        assert word in caught.value.message


# --- every ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("period", ["10s", "1s", "1500ms", "15m", "7d", 90, 1.1])
def test_a_period_is_counted_from_the_epoch(period: float | str) -> None:
    """All workers have the same due times without asking each other, and each is found again in its own multiple."""
    plan = Every(period)
    found = first(plan, at("2026-03-01 12:34"), 500)
    assert len(set(found)) == 500
    for one, two in pairwise(found):
        assert plan.after(one) == two
        assert plan.last(one, one) is None
        assert plan.last(one - 0.25, one) == one


def test_a_quarter_of_an_hour_is_at_a_quarter_past() -> None:
    """Multiples since 1970 are round times of the day."""
    assert stamp(Every("15m").after(at("2026-03-01 12:34")) or 0) == "2026-03-01T12:45:00Z"


@pytest.mark.parametrize(
    ("period", "words"),
    [
        ("10", 'write "10s"'),
        ("0.5s", "@every without once=True"),
        ("400d", "366d"),
        ("soon", "'soon'"),
        (float("nan"), "nan"),
        (None, "None"),
        (True, "True"),
    ],
)
def test_a_period_that_is_none_is_refused(period: float | str, words: str) -> None:
    """With what it may be."""
    with pytest.raises(BadPlan, match="every") as caught:
        Every(period)
    assert words in caught.value.message


# --- what was missed --------------------------------------------------------------------------------------

DAILY = Cron("0 3 * * *")
NIGHT = at("2026-01-10 03:00")


def test_nothing_is_due_before_its_time() -> None:
    """Nor is what is dealt with."""
    assert due(DAILY, NIGHT - 86400, NIGHT - 1, "once") is None
    assert due(DAILY, NIGHT, NIGHT + 10, "all") is None
    assert due(Every("10s"), NIGHT, NIGHT + 9, "once") is None


@pytest.mark.parametrize("missed", ["once", "all", "skip"])
def test_what_is_on_time_is_run(missed: str) -> None:
    """Whatever is said about missed ones."""
    assert due(DAILY, NIGHT - 86400, NIGHT + 2, missed) == ([NIGHT], NIGHT, 0)  # type: ignore[arg-type]


def test_once_runs_the_last_of_many() -> None:
    """A week in which nobody was there is one run."""
    assert due(DAILY, NIGHT - 7 * 86400, NIGHT + 5000, "once") == ([NIGHT], NIGHT, 6)


def test_all_runs_each() -> None:
    """Oldest first."""
    found = due(DAILY, NIGHT - 3 * 86400, NIGHT + 5000, "all")
    assert found == ([NIGHT - 2 * 86400, NIGHT - 86400, NIGHT], NIGHT, 0)


def test_skip_runs_only_what_is_not_late() -> None:
    """An hour later nobody wants it any more; a minute later is still on time."""
    assert due(DAILY, NIGHT - 7 * 86400, NIGHT + LATE_S, "skip") == ([NIGHT], NIGHT, 6)
    assert due(DAILY, NIGHT - 7 * 86400, NIGHT + LATE_S + 1, "skip") == ([], NIGHT, 7)


@pytest.mark.parametrize("plan", [Every("1s"), Cron("* * * * *"), Cron("*/7 * * * *", "Europe/Berlin")])
def test_years_of_missed_runs_are_bounded(plan: Plan) -> None:
    """Neither are a million tasks made, nor are a million due times counted."""
    last_at, now = NIGHT - 5 * 365 * 86400, NIGHT + 0.5
    found = due(plan, last_at, now, "all")
    assert found is not None
    assert len(found.run) == MOST
    assert found.run[-1] == found.to_at == plan.last(last_at, now)
    assert found.missed == MOST
    once = due(plan, last_at, now, "once")
    assert once == ([found.to_at], found.to_at, MOST)


# --- what always holds ------------------------------------------------------------------------------------

ZONES = [
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",
    "America/Havana",
    "Africa/Cairo",
    "Asia/Tehran",
]
FIELD = st.sampled_from(["*", "0", "30", "*/20", "5,45"])
HOUR = st.sampled_from(["*", "0", "1", "2", "3", "*/2", "0-3", "1,23"])


@settings(max_examples=60, deadline=None)
@given(
    minute=FIELD,
    hour=HOUR,
    day=st.sampled_from(["*", "1", "L", "*/5"]),
    zone=st.sampled_from(ZONES),
    since=st.integers(int(at("2024-01-01 00:00")), int(at("2027-01-01 00:00"))),
    days=st.floats(0, 6),
)
def test_looking_back_finds_what_looking_forward_does(
    minute: str, hour: str, day: str, zone: str, since: int, days: float
) -> None:
    """In every zone, whatever is done to the clocks: due times only grow, and the last one is the last of all."""
    plan = Cron(f"{minute} {hour} {day} * *", zone)
    now = since + days * 86400
    forward = [float(since)]
    while (following := plan.after(forward[-1])) is not None and following <= now:
        assert following > forward[-1]
        forward.append(following)
    every = forward[1:]
    assert plan.last(since, now) == (every[-1] if every else None)
    assert plan.newest(since, now, 10) == every[-10:]
    assert plan.count(since, now, 10_000) == len(every)


# --- as text ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "plan", [Cron("0 3 * * *", "Asia/Tokyo"), Cron(" */5  * * * MON-FRI "), Cron("@daily"), Every("90s"), Every(1.5)]
)
def test_a_plan_is_read_again_from_its_text(plan: Plan) -> None:
    """What an engine keeps is enough to go by."""
    again = parse(plan.text)
    assert again.text == plan.text
    assert again.after(NIGHT) == plan.after(NIGHT)


def test_texts_are_plain() -> None:
    """For people."""
    assert Cron(" 0  3 * * * ", "Asia/Tokyo").text == "0 3 * * * Asia/Tokyo"
    assert Every(120).text == "every 2m"
    assert stamp(1.5) == "1970-01-01T00:00:01.500Z"


def test_what_is_no_plan_is_not_read() -> None:
    """Another version may have written it."""
    with pytest.raises(BadPlan):
        parse("sunrise 52.5N")
