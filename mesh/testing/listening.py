"""Recording the events of a mesh under test.

Owns: the list of events, and a service that fills it. Leaves to others: running that service (population).
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence

from mesh.events.event import Event
from mesh.service.decorators import on
from mesh.service.service import Service

_numbers = itertools.count(1)


class Heard(list[Event]):
    """The received events, in order of arrival."""

    def __init__(self) -> None:
        super().__init__()
        self._news = asyncio.Event()

    def note(self, event: Event) -> None:
        """Record one event."""
        self.append(event)
        self._news.set()

    async def wait(self, count: int) -> list[Event]:
        """Return when there are `count` events."""
        while len(self) < count:
            self._news.clear()
            await self._news.wait()
        return list(self)


def listener(topics: Sequence[str], heard: Heard) -> type[Service]:
    """A service in which every instance subscribes to these topics."""

    async def hear(self: Service, event: Event) -> None:
        heard.note(event)

    for topic in topics:
        hear = on(topic, to="every")(hear)
    return type("Listener", (Service,), {"name": f"listener-{next(_numbers)}", "hear": hear})
