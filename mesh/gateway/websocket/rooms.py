"""Topics and the WebSockets that receive their events.

Owns: which topics routes declare, this gateway's subscription to them, and who receives what.
Leaves to others: receiving events (events.inbox), one connection (session), the gateway's record (app).

A gateway subscribes to the patterns that routes declare, not to each room: joining a room takes effect at once and
changes nothing in the registry. It subscribes with the first such route; a mesh without one pays nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol

import msgspec

from mesh.calls.answers import Answer as Body
from mesh.discovery.record import Subscription
from mesh.errors import Forbidden, MeshError
from mesh.events.event import Event, Handler
from mesh.events.inbox import Inbox
from mesh.events.topics import check_topic, matches
from mesh.gateway.answers import value_of
from mesh.gateway.ports import Answer, Node
from mesh.gateway.websocket.frames import BINARY, TEXT, frame
from mesh.protocol.messages import JSON, RAW
from mesh.telemetry.logs import get_logger

_log = get_logger(__name__)
_encode_json: Final = msgspec.json.Encoder().encode


class Member(Protocol):
    """A connection that receives frames."""

    def published(self, data: bytes) -> None: ...


class Rooms:
    """The rooms of one gateway.

    Attributes:
        patterns: the topics that routes declare, sorted.
    """

    def __init__(self, node: Node) -> None:
        self._node: Any = node
        self._inbox: Inbox | None = None
        self._members: dict[str, set[Member]] = {}
        self.patterns: tuple[str, ...] = ()
        self._announce: Callable[[], object] | None = None
        self._slow = node.recorder.counter(
            "websocket_slow_readers", "WebSockets that were cut off because their clients read too slowly."
        )
        self._published = node.recorder.counter("websocket_published", "Messages published to WebSockets.")

    # --- the subscription -------------------------------------------------------------------------

    def announce_with(self, announce: Callable[[], object]) -> None:
        """Call `announce` whenever the subscriptions in the gateway's record have changed."""
        self._announce = announce

    def subscribe(self, patterns: Iterable[str]) -> None:
        """Receive the events of these topics, and of no others."""
        wanted = tuple(sorted(set(patterns)))
        if wanted == self.patterns:
            return
        self.patterns = wanted
        if self._inbox is None:
            transport = self._node.transport
            self._inbox = Inbox(recorder=self._node.recorder)
            self._inbox.open(transport, transport.endpoint(f"{self._node.identity}-events"))
        self._inbox.listen(wanted, Handler("gateway.rooms", "gateway", "", True, Body, self._deliver))
        if self._announce is not None:
            self._announce()

    @property
    def endpoint(self) -> str:
        """Where publishers connect, for the gateway's record; "" without a subscription."""
        return self._inbox.endpoint if self._inbox is not None else ""

    @property
    def subscriptions(self) -> list[Subscription]:
        """For the gateway's record."""
        return [Subscription(pattern, to="every") for pattern in self.patterns]

    async def close(self) -> None:
        """Receive no more events."""
        if self._inbox is not None:
            await self._inbox.close(cancel=True)

    def dropped(self) -> None:
        """A connection was cut off because its client reads too slowly."""
        self._slow.value += 1

    # --- members ----------------------------------------------------------------------------------

    def join(self, topic: str, member: Member, declared: Iterable[str]) -> None:
        """Send the events of a topic to a connection.

        Args:
            declared: the topics of its route.

        Raises:
            BadTopic: the topic is malformed or has a wildcard.
            Forbidden: the route does not declare it.
        """
        check_topic(topic)
        if not any(matches(pattern, topic) for pattern in declared):
            raise Forbidden(f'the route does not declare the topic "{topic}": add it to topics=[…] of @http.websocket')
        self._members.setdefault(topic, set()).add(member)

    def leave(self, topic: str, member: Member) -> None:
        """Undo `join`."""
        members = self._members.get(topic)
        if members is not None:
            members.discard(member)
            if not members:
                del self._members[topic]

    async def _deliver(self, event: Event) -> None:
        members = self._members.get(event.topic)
        if not members:
            return
        try:
            data = message_of(event.data)
        except MeshError as exc:
            _log.warning("websocket.event_dropped", topic=event.topic, publisher=event.publisher, error=exc.message)
            return
        self._published.value += len(members)
        for member in tuple(members):
            member.published(data)


def message_of(answer: Answer) -> bytes:
    """The frame of an event's data: text for a str, binary for bytes, JSON as text otherwise.

    Raises:
        BadReply: the data cannot be represented in JSON.
    """
    if answer.encoding == RAW:
        return frame(BINARY, answer.body)
    if answer.encoding == JSON:
        return frame(TEXT, answer.body)
    value = value_of(answer)
    if isinstance(value, str):
        return frame(TEXT, value.encode())
    if isinstance(value, bytes):
        return frame(BINARY, value)
    return frame(TEXT, _encode_json(value))
