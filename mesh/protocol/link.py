"""The state of one link, at either end.

Owns: which link messages are legal when: greeting, goodbye, closing.
Leaves to others: calls on the link (caller, callee), its socket (transport).
"""

from __future__ import annotations

from enum import Enum
from typing import Any, Final

from mesh.errors import ProtocolViolation
from mesh.protocol.messages import (
    GOODBYE,
    HELLO,
    NAMES,
    PING,
    PONG,
    REJECT,
    VERSION,
    WELCOME,
)


class Link(Enum):
    """The state of a link."""

    CONNECTING = "connecting"  # dialled; no connection yet
    GREETING = "greeting"  # connected; hello was sent, or is awaited
    OPEN = "open"
    LEAVING = "leaving"  # the accepting end sent goodbye: no new calls, running calls are answered
    CLOSED = "closed"

    # The state is part of a dict key for every received frame; hashing by identity is faster than Enum's own hash.
    __hash__ = object.__hash__


#: Characters of an identity, which is shown in logs, metrics and pages.
MAX_IDENTITY: Final = 200

CONNECTED: Final = -1
LOST: Final = -2

#: The dialling end.
DIALLER: Final[dict[tuple[Link, int], Link]] = {
    (Link.CONNECTING, CONNECTED): Link.GREETING,
    (Link.GREETING, WELCOME): Link.OPEN,
    (Link.GREETING, REJECT): Link.CLOSED,
    (Link.OPEN, GOODBYE): Link.LEAVING,
    (Link.LEAVING, GOODBYE): Link.LEAVING,
    (Link.OPEN, REJECT): Link.CLOSED,
    (Link.LEAVING, REJECT): Link.CLOSED,
    (Link.OPEN, PING): Link.OPEN,
    (Link.OPEN, PONG): Link.OPEN,
    (Link.LEAVING, PING): Link.LEAVING,
    (Link.LEAVING, PONG): Link.LEAVING,
    (Link.CONNECTING, LOST): Link.CLOSED,
    (Link.GREETING, LOST): Link.CLOSED,
    (Link.OPEN, LOST): Link.CLOSED,
    (Link.LEAVING, LOST): Link.CLOSED,
}

#: The accepting end.
ACCEPTOR: Final[dict[tuple[Link, int], Link]] = {
    (Link.CONNECTING, CONNECTED): Link.GREETING,
    (Link.GREETING, HELLO): Link.OPEN,
    (Link.OPEN, PING): Link.OPEN,
    (Link.OPEN, PONG): Link.OPEN,
    (Link.LEAVING, PING): Link.LEAVING,
    (Link.LEAVING, PONG): Link.LEAVING,
    (Link.CONNECTING, LOST): Link.CLOSED,
    (Link.GREETING, LOST): Link.CLOSED,
    (Link.OPEN, LOST): Link.CLOSED,
    (Link.LEAVING, LOST): Link.CLOSED,
}


def step(table: dict[tuple[Link, int], Link], state: Link, kind: int) -> Link:
    """The state after a message or a connection change.

    Raises:
        ProtocolViolation: the table has no such transition.
    """
    try:
        return table[state, kind]
    except KeyError:
        raise ProtocolViolation(
            f"{NAMES.get(kind, 'connection change')}: not legal while the link is {state.value}"
        ) from None


def check_version(message: list[Any]) -> None:
    """Refuse a peer with another wire version, or with an identity that cannot be displayed.

    Raises:
        ProtocolViolation: the version of the hello or welcome differs from VERSION, or its identity is invalid.
    """
    if message[1] != VERSION:
        raise ProtocolViolation(
            f"{NAMES[message[0]]}: peer {message[2][:100]!r} speaks wire version {message[1]}, "
            f"this end speaks {VERSION}; run the same release of zeromesh on both"
        )
    if not 1 <= len(message[2]) <= MAX_IDENTITY or not message[2].isprintable():
        raise ProtocolViolation(f"{NAMES[message[0]]}: identity must be 1 to {MAX_IDENTITY} printable characters")
