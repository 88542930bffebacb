"""How options of tasks are written, and what is refused where."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import pytest

from mesh.calls.declared import BadDeclaration
from mesh.config.settings import TaskSettings
from mesh.errors import BadArguments
from mesh.tasks.options import Attempts, due_at, read_attempts, read_backoff, read_rate, span


@pytest.mark.parametrize(
    ("written", "first_s", "most_s"),
    [
        ("1s..1m", 1.0, 60.0),
        ("250ms .. 2s", 0.25, 2.0),
        ("5s", 5.0, 5.0),
        (5, 5.0, 5.0),
        (0.5, 0.5, 0.5),
        ("1m..1m", 60.0, 60.0),
    ],
)
def test_a_backoff_goes_from_its_first_wait_to_its_longest(written, first_s, most_s):
    """It doubles from a second to a minute; one time alone is always that."""
    assert read_backoff("backoff", written) == (first_s, most_s)


@pytest.mark.parametrize("written", ["1m..1s", "1..2", "..", "1s..", "fast", 0, -1, True, "1s...2s", math.inf, None])
def test_a_backoff_that_is_none_is_refused(written):
    """The message names the option and quotes what was written."""
    with pytest.raises(BadDeclaration, match="backoff"):
        read_backoff("backoff", written)


@pytest.mark.parametrize(
    ("written", "per_second"),
    [("50/s", 50.0), ("120/m", 2.0), ("3600/h", 1.0), ("10/5s", 2.0), ("0.5/s", 0.5), (7, 7.0), (" 50 / s ", 50.0)],
)
def test_a_rate_is_a_number_per_time(written, per_second):
    """Per second, whatever the time it is written for."""
    assert read_rate("rate", written) == pytest.approx(per_second)


@pytest.mark.parametrize("written", ["50", "50/", "/s", "50/x", "0/s", "-1/s", "50/0s", 0, -3, True, math.nan, "fast"])
def test_a_rate_that_is_none_is_refused(written):
    """Also one of nothing: it would stop the queue for ever."""
    with pytest.raises(BadDeclaration, match=r"^rate "):
        read_rate("rate", written)


def test_a_rate_alone_allows_a_tenth_of_a_second_at_once():
    """Finer than that no timer is worth setting."""
    assert read_attempts("@task", rate="50/s").burst == 5
    assert read_attempts("@task", rate="1/s").burst == 1
    assert read_attempts("@task", rate="50/s", burst=50).burst == 50


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"retries": -1}, ["retries -1", "0 to 1000"]),
        ({"retries": 1.5}, ["retries 1.5"]),
        ({"slots": 0}, ["slots 0", "from 1"]),
        ({"concurrency": -1}, ["concurrency -1"]),
        ({"burst": 3}, ["burst", "rate"]),
        ({"timeout": "soon"}, ["timeout 'soon'", '"10s"']),
        ({"timeout": 0}, ["timeout 0"]),
        ({"fatal": (ValueError, "x")}, ["fatal: 'x'"]),
        ({"fatal": (KeyboardInterrupt,)}, ["fatal: ", "KeyboardInterrupt"]),
    ],
)
def test_nonsense_is_refused_by_its_name(options, named):
    """Where it is written, with the option's name."""
    with pytest.raises(BadDeclaration, match="@task") as caught:
        read_attempts("@task", **options)
    assert all(word in caught.value.message for word in named)


def test_what_the_author_leaves_open_is_configured():
    """retries, timeout and slots come from [tasks]."""
    settings = TaskSettings(retries=7, timeout_s=11.0, slots=13)
    assert Attempts().filled(settings) == (7, 11.0, 13)
    assert Attempts(retries=0, timeout_s=1.0, slots=2).filled(settings) == (0, 1.0, 2)
    assert read_attempts("@task", fatal=ValueError).fatal == (ValueError,)


def test_a_delay_and_an_instant_say_when():
    """A delay counts from now; an instant is a datetime with a zone, or seconds since 1970."""
    assert due_at("a.b", None, None, 1000.0) == 0.0
    assert due_at("a.b", "5m", None, 1000.0) == 1300.0
    assert due_at("a.b", 0, None, 1000.0) == 0.0
    assert due_at("a.b", None, 1234.5, 1000.0) == 1234.5
    assert due_at("a.b", None, datetime(1970, 1, 2, tzinfo=UTC), 1000.0) == 86400.0


@pytest.mark.parametrize(
    ("delay", "at", "named"),
    [
        ("5m", 5.0, "(at)"),
        (None, datetime(2030, 1, 1), "at='2030-01-01T00:00:00'"),
        (None, "tomorrow", "at='tomorrow'"),
        (None, math.nan, "at=nan"),
        (None, -1.0, "at=-1.0"),
        (-1, None, "delay=-1"),
        ("soon", None, "delay='soon'"),
        (True, None, "delay=True"),
        (math.inf, None, "delay=inf"),
        ("40000d", None, "delay='40000d'"),
    ],
)
def test_a_time_that_is_none_is_refused_where_the_task_is_deferred(delay, at, named):
    """As an error of the request, which names the task."""
    with pytest.raises(BadArguments, match=r"a\.b") as caught:
        due_at("a.b", delay, at, 1000.0)
    assert named in caught.value.message


def test_a_length_of_time_is_positive():
    """Nothing is kept for no time."""
    assert span("a.b", "keep", "1h") == 3600.0
    assert span("a.b", "keep", 2) == 2.0
    with pytest.raises(BadArguments, match="keep=0"):
        span("a.b", "keep", 0)
