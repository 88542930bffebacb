"""What follows from an attempt that raised."""

from __future__ import annotations

import pytest

import mesh
from mesh.calls.results import BadResult
from mesh.errors import BadArguments, RemoteError, TooLarge, Unavailable, UnknownService
from mesh.policy.backoff import Backoff
from mesh.tasks.verdicts import judge


def verdict(exc, *, failed=1, retries=3, fatal=(), rnd=0.0):
    ruling = judge(exc, failed=failed, retries=retries, backoff=Backoff(1.0, 60.0), fatal=fatal, rnd=rnd)
    return ruling.verdict, ruling.reason, ruling.delay_s


@pytest.mark.parametrize(
    "exc",
    [
        ValueError("x"),
        Unavailable("x"),
        UnknownService("nobody yet"),
        BadArguments("of a call that it made"),
        RemoteError("x"),
        mesh.ServiceError("x"),
        mesh.Conflict("somebody was faster"),
        TimeoutError(),
    ],
)
def test_whatever_it_is_it_is_tried_again(exc):
    """Also an error that is not `retryable`: that speaks of calls."""
    assert verdict(exc) == ("retry", "", 1.0)


def test_the_waits_grow_and_chance_shortens_them():
    """One second, two, four."""
    assert [verdict(ValueError(), failed=n, retries=9)[2] for n in (1, 2, 3, 9)] == [1.0, 2.0, 4.0, 60.0]
    assert verdict(ValueError(), failed=3, rnd=1.0)[2] == 2.0


def test_the_last_retry_is_the_last():
    """`retries` are attempts after the first."""
    assert verdict(ValueError(), failed=3, retries=3)[0] == "retry"
    assert verdict(ValueError(), failed=4, retries=3) == ("dead", "failed", 0.0)
    assert verdict(ValueError(), failed=1, retries=0)[0] == "dead"


@pytest.mark.parametrize("exc", [mesh.Reject("no such order"), BadResult("x"), TooLarge("x")])
def test_what_cannot_get_better_ends_at_once(exc):
    """The handler says so, or its answer cannot be kept."""
    assert verdict(exc) == ("dead", "failed", 0.0)


def test_the_author_names_what_is_fatal():
    """Subclasses too."""
    assert verdict(KeyError("x"), fatal=(LookupError,))[0] == "dead"
    assert verdict(ValueError("x"), fatal=(LookupError,))[0] == "retry"


def test_a_handler_may_say_when():
    """It counts as an attempt all the same."""
    assert verdict(mesh.Retry("closed", delay="1h")) == ("retry", "", 3600.0)
    assert verdict(mesh.Retry("now", delay=0))[2] == 0.0
    assert verdict(mesh.Retry("later"))[2] == 1.0
    assert verdict(mesh.Retry("again", delay=5), failed=4)[0] == "dead"
    with pytest.raises(BadArguments, match=r"mesh\.Retry: delay='soon'"):
        mesh.Retry("x", delay="soon")
