"""A trace goes through, and only a valid one."""

import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.telemetry import traces

GOOD = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize(
    ("header", "accepted"),
    [
        (GOOD, GOOD),
        (f"  {GOOD} ", GOOD),
        (GOOD[:-2] + "00", GOOD[:-2] + "00"),
        # A later version is read as far as 00 goes; flags that are not known are dropped.
        ("cc" + GOOD[2:] + "-what-comes", GOOD),
        ("cc" + GOOD[2:], GOOD),
        (GOOD[:-2] + "ff", GOOD[:-2] + "03"),
        # Not valid at all.
        (None, ""),
        ("", ""),
        ("ff" + GOOD[2:], ""),
        (GOOD + "-more", ""),
        (GOOD.upper(), ""),
        (GOOD[:-1], ""),
        (GOOD.replace("0af7651916cd43dd8448eb211c80319c", "0" * 32), ""),
        (GOOD.replace("b7ad6b7169203331", "0" * 16), ""),
        (GOOD.replace("0af7", "0ag7"), ""),
        (GOOD.replace("0af7", "٠af7"), ""),
        (GOOD + "\n", GOOD),
        ("cc" + GOOD[2:] + "x", ""),
    ],
)
def test_what_comes_in_is_checked_by_the_standard(header, accepted):
    """Valid values pass in the form of version 00; others begin a new trace."""
    assert traces.accept(header) == accepted


@given(st.text() | st.from_regex(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}.?", fullmatch=True))
def test_no_header_does_harm(header):
    """Whatever the header, the outcome is nothing or a value that is accepted as it stands."""
    accepted = traces.accept(header)
    assert accepted == "" or traces.accept(accepted) == accepted


def test_the_parts_are_told():
    """Trace id, span id and the sampled flag are read, and give the same string again."""
    trace = traces.parse(GOOD)
    assert trace == ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", 1)
    assert trace.sampled
    assert str(trace) == GOOD


def test_what_is_made_here_is_valid():
    """Fresh traces and their children, are accepted as they stand."""
    for made in (traces.root(), traces.child(GOOD), traces.child("")):
        assert traces.accept(made) == made


def test_a_child_keeps_the_trace_and_has_its_own_span():
    """Trace id and flags stay; the span id is new."""
    parent = traces.parse(GOOD[:-2] + "00")
    child = traces.parse(traces.child(str(parent), random.Random(1).getrandbits))
    assert (child.trace_id, child.flags) == (parent.trace_id, 0)
    assert child.span_id != parent.span_id


def test_an_unlucky_draw_is_still_a_valid_trace():
    """All zeros mean "none" in a traceparent: they are never made."""
    assert traces.accept(traces.root(lambda bits: 0))
    assert traces.accept(traces.child(GOOD, lambda bits: 0))


async def test_work_belongs_to_the_trace_in_force_where_it_began():
    """A child made without naming a parent continues `current`; tasks do not see each other's."""

    async def handler(traceparent: str) -> str:
        traces.current.set(traceparent)
        await asyncio.sleep(0)
        return traces.child()

    one, other = await asyncio.gather(asyncio.create_task(handler(GOOD)), asyncio.create_task(handler(traces.root())))
    assert one[:36] == GOOD[:36]
    assert other[:36] != GOOD[:36]
    assert traces.current.get() == ""
