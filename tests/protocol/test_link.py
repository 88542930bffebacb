"""The life of a link as two tables."""

from __future__ import annotations

import pytest

from mesh.errors import ProtocolViolation
from mesh.protocol.link import ACCEPTOR, CONNECTED, DIALLER, LOST, Link, check_version, step
from mesh.protocol.messages import GOODBYE, GRAMMAR, HELLO, PING, PONG, REJECT, VERSION, WELCOME

TABLES = pytest.mark.parametrize("table", [DIALLER, ACCEPTOR], ids=["dialler", "acceptor"])


@TABLES
def test_a_closed_link_is_closed(table):
    """Nothing leads out of it."""
    assert not [key for key in table if key[0] is Link.CLOSED]


@TABLES
def test_every_state_but_closed_can_be_lost(table):
    """A connection breaks when it likes."""
    assert {state for state, kind in table if kind == LOST} == set(Link) - {Link.CLOSED}
    assert all(after is Link.CLOSED for (_, kind), after in table.items() if kind == LOST)


@TABLES
def test_only_messages_of_the_link_are_steps(table):
    """Calls and the rest are other tables' matter."""
    assert {kind for _, kind in table if kind > 0} <= {HELLO, WELCOME, GOODBYE, PING, PONG, REJECT}


@TABLES
def test_a_missing_step_is_a_violation_that_names_it(table):
    """For every state and kind that the table lacks."""
    for state in Link:
        for kind in GRAMMAR:
            if (state, kind) in table:
                assert step(table, state, kind) is table[state, kind]
            else:
                with pytest.raises(ProtocolViolation, match=rf"\b{state.value}\b"):
                    step(table, state, kind)


def test_the_shortest_life_of_each_end():
    """Connected, greeted, said goodbye, lost."""
    state = Link.CONNECTING
    for kind, after in ((CONNECTED, Link.GREETING), (WELCOME, Link.OPEN), (GOODBYE, Link.LEAVING), (LOST, Link.CLOSED)):
        state = step(DIALLER, state, kind)
        assert state is after
    state = Link.CONNECTING
    for kind, after in ((CONNECTED, Link.GREETING), (HELLO, Link.OPEN), (PING, Link.OPEN), (LOST, Link.CLOSED)):
        state = step(ACCEPTOR, state, kind)
        assert state is after


@pytest.mark.parametrize(
    "identity", ["", "x" * 201, "two\nlines", "\x1b[31m"], ids=["empty", "long", "lines", "escape"]
)
def test_an_identity_can_be_shown(identity):
    """It stands in logs and on pages: 1 to 200 printable characters."""
    with pytest.raises(ProtocolViolation, match=r"^hello: identity .*\b200\b"):
        check_version([HELLO, VERSION, identity, 1, 1])
    check_version([HELLO, VERSION, "wörker-1 (ann)", 1, 1])


def test_a_version_is_ours_or_refused():
    """The message names the peer, both versions and the mend, and quotes a long name in part."""
    check_version([HELLO, VERSION, "ann", 1, 1])
    with pytest.raises(ProtocolViolation, match=r"^hello: .*'ann'.*\b9\b") as caught:
        check_version([HELLO, 9, "ann", 1, 1])
    with pytest.raises(ProtocolViolation) as caught:
        check_version([WELCOME, 9, "x" * 100_000, 1, 1, 1])
    assert len(caught.value.message) < 300
