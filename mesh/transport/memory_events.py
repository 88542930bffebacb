"""Publishers and subscribers of the in-memory transport.

Owns: delivering events by prefix, and dropping them past the high-water mark as a PUB socket does.
Leaves to others: connections, faults and names (memory).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context
from typing import Any, Protocol

from mesh.telemetry.logs import get_logger
from mesh.transport import endpoints
from mesh.transport.contract import Buffer

log = get_logger("mesh.transport")


def soon(callback: Callable[..., object], *args: Any) -> None:
    """Run the callback in the next turn of the loop, in an empty context: no context variable of the sender reaches the
    receiver, as between real processes."""
    asyncio.get_running_loop().call_soon(callback, *args, context=Context())


class MemoryTransport(Protocol):
    """The process that publishes or subscribes; see mesh.transport.memory."""

    network: Any
    dead: bool
    _ends: Any
    _publishers: dict[Any, None]
    _subscribers: dict[Any, None]


class MemoryPublisher:
    """The `Publisher` of the contract."""

    def __init__(self, transport: MemoryTransport) -> None:
        self._transport = transport
        self._wanted: dict[str, None] = {}

    def connect(self, endpoint: str) -> None:
        endpoints.parse(endpoint, dialling=True)
        self._wanted[endpoint] = None
        soon(self._join, endpoint)

    def _join(self, endpoint: str) -> None:
        subscriber = self._transport.network.subscribers.get(endpoint)
        if subscriber is not None and endpoint in self._wanted:
            subscriber.publishers.add(self)

    def disconnect(self, endpoint: str) -> None:
        self._wanted.pop(endpoint, None)
        subscriber = self._transport.network.subscribers.get(endpoint)
        if subscriber is not None:
            subscriber.publishers.discard(self)

    def joined(self, endpoint: str) -> bool:
        subscriber = self._transport.network.subscribers.get(endpoint)
        return subscriber is not None and self in subscriber.publishers

    def send(self, topic: str, frame: Buffer) -> None:
        if not self._transport.dead:
            for endpoint in self._wanted:
                subscriber = self._transport.network.subscribers.get(endpoint)
                if subscriber is not None and self in subscriber.publishers:
                    subscriber.put(self._transport, topic, frame)

    def close(self) -> None:
        for endpoint in tuple(self._wanted):
            self.disconnect(endpoint)
        self._transport._publishers.pop(self, None)


class MemorySubscriber:
    """The `Subscriber` of the contract."""

    def __init__(self, transport: MemoryTransport, endpoint: str, on_event: Callable[[str, Buffer], None]) -> None:
        self.endpoint = endpoint
        self.publishers: set[MemoryPublisher] = set()
        self._transport = transport
        self._on_event = on_event
        self._prefixes: set[str] = set()
        self._waiting = 0
        self._open = True

    def subscribe(self, prefix: str) -> None:
        # As with a socket, the subscription reaches the publishers only after the call has returned.
        soon(self._prefixes.add, prefix)

    def unsubscribe(self, prefix: str) -> None:
        soon(self._prefixes.discard, prefix)

    def put(self, sender: MemoryTransport, topic: str, frame: Buffer) -> None:
        network = self._transport.network
        if self._waiting >= network.event_high_water or not any(map(topic.startswith, self._prefixes)):
            return
        if network._blocked(self.endpoint, sender, self._transport) or network._lossy(self.endpoint):
            return
        self._waiting += 1
        delay_s = network._delays.get(self.endpoint, 0.0)
        if delay_s:
            network.clock.call_at(network.clock.now() + delay_s, Context().run, self._deliver, topic, frame)
        else:
            soon(self._deliver, topic, frame)

    def _deliver(self, topic: str, frame: Buffer) -> None:
        self._waiting -= 1
        if self._open and not self._transport.dead:
            try:
                self._on_event(topic, frame)
            except Exception:
                log.exception("event.receiver_failed", endpoint=self.endpoint, topic=topic)

    def close(self) -> None:
        self._open = False
        self.publishers.clear()
        self._transport._subscribers.pop(self, None)
        if self._transport.network.subscribers.get(self.endpoint) is self:
            del self._transport.network.subscribers[self.endpoint]
