"""An event as its handler sees it, and the description of a handler.

Owns: the data types, encoding and decoding an event's data, and the parcel in which it travels to one instance.
Leaves to others: sending (bus), receiving (inbox), finding the handlers of a service (service.describe).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec

from mesh.errors import BadArguments, TooLarge
from mesh.protocol.messages import JSON, MSGPACK, RAW

Buffer = bytes | bytearray | memoryview
Decode = Callable[[Buffer, int], Any]

_pack: Final = msgspec.msgpack.Encoder().encode


class Event(msgspec.Struct, frozen=True):
    """An event, as a handler receives it: `async def seen(self, event: mesh.Event)` under `@on("order.*")`.

    Attributes:
        topic: as it was emitted.
        data: of the type that the handler's annotation names.
        publisher: the process that emitted the event; a restarted process has another name.
        number: counts the events of one publisher and topic, from 1, without gaps; separately for `to="one"` and
            `to="every"`. Publisher, topic and number identify the event: a second delivery has the same.
        at: when it was emitted, by the publisher's clock, in seconds since 1970.
        trace: W3C traceparent of the publisher; "" when unknown.
        meta: small map of text that travels with the event.
        id: of a durable event; the same in each delivery.
        key: the key of a durable event.
        offset: the position of a durable event in the log.
    """

    topic: str
    data: Any = None
    publisher: str = ""
    number: int = 0
    at: float = 0.0
    trace: str = ""
    meta: dict[str, str] = {}
    id: str = ""
    key: str = ""
    offset: int = 0


class Handler(msgspec.Struct, frozen=True):
    """One `@on` of one instance.

    Attributes:
        label: "mail.welcome", for logs and errors.
        service: the service's name.
        pattern: the topics that it subscribes to.
        every: whether events go to every instance over PUB/SUB; otherwise to one instance, with acknowledgement.
        decode: (body, encoding) -> data. Raises BadArguments.
        run: awaited with the event.
    """

    label: str
    service: str
    pattern: str
    every: bool
    decode: Decode
    run: Callable[[Event], Awaitable[Any]]


class Parcel(msgspec.Struct, array_like=True, frozen=True):
    """The body of a call to "service.$on": an event for one instance, acknowledged by the answer."""

    topic: str
    publisher: str
    number: int
    at_ms: int
    body: bytes
    encoding: int = MSGPACK
    trace: str = ""
    meta: dict[str, str] = {}


def encode_data(topic: str, data: Any, most_bytes: int) -> tuple[bytes, int]:
    """(body, encoding). Bytes travel as they are.

    Raises:
        BadArguments: the data cannot be sent; raised where the event is emitted.
        TooLarge: it is longer than `most_bytes`.
    """
    if isinstance(data, bytes | bytearray | memoryview):
        body, encoding = bytes(data), RAW
    else:
        try:
            body, encoding = _pack(data), MSGPACK
        except Exception as exc:
            raise BadArguments(
                f"the data of event {topic!r} cannot be sent (a value of type {type(data).__qualname__}): {exc}",
                details={"path": "$"},
            ) from exc
    if len(body) > most_bytes:
        raise TooLarge(
            f"the data of event {topic!r} is {len(body):,} bytes long; the limit is {most_bytes:,}. "
            "Store it elsewhere and send a reference"
        )
    return body, encoding


def decoder(label: str, hint: Any = Any) -> Decode:
    """A function from (body, encoding) to data of the type `hint`; `label` names the handler in its errors."""
    packed = msgspec.msgpack.Decoder(hint).decode
    text = msgspec.json.Decoder(hint).decode
    any_bytes = hint in (Any, bytes)

    def decode(body: Buffer, encoding: int) -> Any:
        try:
            if encoding == MSGPACK:
                return packed(body)
            if encoding == JSON:
                return text(body)
            return bytes(body) if any_bytes else msgspec.convert(bytes(body), hint)
        # A hostile body or a type's own checks may raise anything.
        except Exception as exc:
            what, _, where = str(exc).rpartition(" - at ")
            path = where.strip("`") if what else "$"
            reason = (what or where).replace("`", "")[:200]
            raise BadArguments(f"event for {label}: {reason} (at {path[:200]})", details={"path": path[:200]}) from None

    return decode
