"""Flow control of a stream."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import ProtocolViolation
from mesh.protocol.stream import MAX_CREDIT, WINDOW, Inflow, Outflow


def test_an_item_needs_a_credit():
    """As many as were granted, and not one more until more are."""
    outflow = Outflow(2)
    assert [outflow.take() for _ in range(3)] == [True, True, False]
    outflow.grant(1)
    assert [outflow.take() for _ in range(2)] == [True, False]


@pytest.mark.parametrize("grant", [-1, MAX_CREDIT + 1, 2**63])
def test_an_absurd_grant_is_a_violation(grant):
    """Negative, or more than any reader would take: at the opening and later."""
    with pytest.raises(ProtocolViolation):
        Outflow(grant)
    outflow = Outflow(1)
    with pytest.raises(ProtocolViolation):
        outflow.grant(grant)
    assert outflow.credit == 1


def test_credit_does_not_add_up_beyond_the_most():
    """Many legal grants do not make an illegal sum."""
    outflow = Outflow(MAX_CREDIT)
    with pytest.raises(ProtocolViolation):
        outflow.grant(1)
    assert outflow.take()
    outflow.grant(1)


def test_a_reader_grants_in_batches_of_half_a_window():
    """Not item by item, and early enough that the sender need not stand still."""
    inflow = Inflow()
    for _ in range(WINDOW):
        inflow.arrived()
    grants = [inflow.consumed() for _ in range(WINDOW)]
    assert [grant for grant in grants if grant] == [WINDOW // 2, WINDOW // 2]
    assert grants.index(WINDOW // 2) == WINDOW // 2 - 1


def test_an_item_without_credit_is_a_violation():
    """A sender that ignores the window is cut before it fills the reader's memory."""
    inflow = Inflow(2)
    inflow.arrived()
    inflow.arrived()
    with pytest.raises(ProtocolViolation, match=r"^item: "):
        inflow.arrived()


@given(st.integers(1, 9), st.lists(st.booleans(), max_size=200))
def test_both_halves_agree_whatever_the_pace(window, turns):
    """The sender never sends what the reader would refuse, and a reader that reads on never starves it."""
    outflow, inflow = Outflow(window), Inflow(window)
    waiting = 0
    for send in turns:
        if send and outflow.take():
            inflow.arrived()
            waiting += 1
        elif not send and waiting:
            waiting -= 1
            outflow.grant(inflow.consumed())
        assert waiting <= window
    while waiting:
        waiting -= 1
        outflow.grant(inflow.consumed())
    assert outflow.take()
