"""Messages that are legal and ask for nothing: how many a peer may send."""

from __future__ import annotations

import pytest

from mesh.protocol.allowance import BURST, FRAME, RATE, Allowance
from mesh.protocol.callee import Callee
from mesh.protocol.caller import Caller
from mesh.protocol.codec import one
from mesh.protocol.messages import CALL, CANCEL, CREDIT, HELLO, OPEN, PING, REPLY, VERSION, WELCOME

HELLO_FRAME = one(HELLO, VERSION, "peer", 1, 1 << 20)


def test_a_burst_is_allowed_once_and_again_with_time():
    """It leaks at RATE."""
    allowance = Allowance()
    assert allowance.take(BURST, 10.0)
    assert not allowance.take(1, 10.0)
    assert allowance.take(int(RATE), 12.0)


def test_a_steady_trickle_is_allowed_for_ever():
    allowance = Allowance()
    assert all(allowance.take(FRAME + 1, at / 10) for at in range(10_000))


@pytest.mark.parametrize(
    ("frame", "idle"),
    [
        (b"", FRAME),
        (one(PING, 1), FRAME + 1),
        (one(PING, 1) * 500, FRAME + 500),
        (one(CANCEL, 99), FRAME + 1),
        (one(CREDIT, 99, 1), FRAME + 1),
        (one(CALL, 1, "a.b", 1000, b""), 0),
        (one(CALL, 1, "a.b", 1000, b"") + one(PING, 1), 1),
        (one(CALL, 1, "a.b", 1000, b"") + one(CALL, 2, "a.b", 1000, b"") + one(CALL, 3, "a.b", 1000, b""), 1),
    ],
)
def test_what_counts_at_the_answering_end(frame: bytes, idle: int):
    """Pings, empty messages, calls beyond the credit, and words about calls that are over; not calls."""
    callee = Callee("me", 1, 2, 1 << 20)
    callee.connected()
    callee.receive([HELLO_FRAME])
    callee.idle = 0
    callee.receive([frame])
    assert callee.idle == idle


def test_grants_of_nothing_count():
    """A stream that is granted no items, again and again."""
    callee = Callee("me", 1, 2, 1 << 20)
    callee.connected()
    callee.receive([HELLO_FRAME])
    callee.receive([one(OPEN, 1, "a.b", 1000, b"", 5)])
    callee.idle = 0
    callee.receive([one(CREDIT, 1, 0) * 10])
    assert callee.idle == FRAME + 10
    callee.idle = 0
    callee.receive([one(CREDIT, 1, 1) * 10])
    assert callee.idle == 0


def test_what_counts_at_the_calling_end():
    """Pings and empty messages of a worker; not its answers."""
    caller = Caller("me", 1, 1 << 20)
    caller.connected()
    caller.receive([one(WELCOME, VERSION, "worker", 1, 100, 1 << 20)])
    call = caller.call("a.b", 1000, b"")
    caller.idle = 0
    caller.receive([one(REPLY, call, b"")])
    assert caller.idle == 0
    caller.receive([one(PING, 1)])
    caller.receive([b""])
    assert caller.idle == 2 * FRAME + 1
