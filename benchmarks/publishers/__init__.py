"""The contestants that keep messages: one small file each, of the shape of `peers`.

Owns: the list, and their client process.
Leaves to others: the shape (peers), their servers (servers), driving them (publish_host).

A contestant's file imports what it needs inside its functions, so that one that is not installed can still be named.
It has:
    PEER                     what it is called, how it is run, what it needs
    connect(place)           an asynchronous context that yields a Publisher
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.children import python
from benchmarks.peers import Command, Place, Roster

ROSTER = Roster(
    "benchmarks.publishers",
    ("mesh", "rabbitmq", "rabbitmq_quorum", "jetstream", "jetstream_synced", "redis_stream"),
)


@dataclass(frozen=True)
class Publisher:
    """A connected client.

    Attributes:
        one: publishes a body; returns when it is confirmed.
        batch: the same with many at once; None where the contestant has no such form.
        stored: how many messages are kept now; None where it cannot tell.
    """

    one: Callable[[Any], Awaitable[Any]]
    batch: Callable[[Sequence[Any]], Awaitable[Any]] | None = None
    stored: Callable[[], Awaitable[int]] | None = None


def asking(key: str) -> Callable[[Place], Command]:
    """The client process of one contestant."""
    return lambda place: Command("client", python("benchmarks.publish_host", key, place.as_argument()))
