"""Items of a stream with an id, so that a browser can resume the stream where it was cut.

Owns: the class that users yield, and its form between worker and gateway.
Leaves to others: writing it (gateway.sse, gateway.websocket), where the ids come from (events.tail).

A caller from Python gets the data alone. Source: HTML Living Standard, 9.2, "Server-sent events".
"""

from __future__ import annotations

import typing
from typing import Any, Final, Generic, TypeVar

import msgspec

from mesh.protocol.codec import Buffer

T = TypeVar("T")

_ILLEGAL: Final = frozenset("\r\n\0")


class ServerSentEvent(Generic[T]):
    """One item of a stream for browsers: `yield http.ServerSentEvent(order, id="17", event="changed")`.

    Args:
        data: the item.
        id: the browser sends the last id that it got as `Last-Event-ID` when it connects again; "" leaves it unchanged.
        event: the name for `addEventListener`; "" is "message".

    Raises:
        ValueError: the id or the name has a line break or NUL.
    """

    __slots__ = ("data", "event", "id")

    def __init__(self, data: T, *, id: str = "", event: str = "") -> None:
        for name, value in (("id", id), ("event", event)):
            if not isinstance(value, str) or not _ILLEGAL.isdisjoint(value) or len(value) > 1024:
                raise ValueError(
                    f"ServerSentEvent: {name} {value!r:.80} must be text of one line, at most 1,024 characters"
                )
        self.data = data
        self.id = id
        self.event = event

    def __repr__(self) -> str:
        return f"ServerSentEvent({self.data!r}, id={self.id!r}, event={self.event!r})"


class Envelope(msgspec.Struct, array_like=True, frozen=True):
    """The form between worker and gateway, in MessagePack; `data` is JSON."""

    id: str
    event: str
    data: bytes


_encode_json: Final = msgspec.json.Encoder().encode
_pack: Final = msgspec.msgpack.Encoder().encode
_unpack: Final = msgspec.msgpack.Decoder(Envelope).decode


def sealed(event: ServerSentEvent[Any], data: Buffer) -> bytes:
    """The envelope of an event with data in JSON."""
    return _pack(Envelope(event.id, event.event, bytes(data)))


def read_envelope(body: Buffer) -> Envelope:
    """Decode an envelope.

    Raises:
        msgspec.DecodeError: it is not one.
        ValueError: the id or the name would break the framing.
    """
    envelope = _unpack(body)
    if not _ILLEGAL.isdisjoint(envelope.id) or not _ILLEGAL.isdisjoint(envelope.event):
        raise ValueError("the id or the name of an event has a line break")
    return envelope


def envelope_of(body: Buffer) -> Envelope | None:
    """The envelope in an item; None when the item is something else."""
    try:
        return read_envelope(body)
    except (msgspec.DecodeError, ValueError):
        return None


def shown(envelope: Envelope) -> bytes:
    """An event as JSON: `{"id": …, "event": …, "data": …}`."""
    return _encode_json({"id": envelope.id, "event": envelope.event, "data": msgspec.Raw(envelope.data)})


def unwrapped_event(hint: Any) -> tuple[Any, bool]:
    """The type of the data that a stream's annotation promises, and whether its items are ServerSentEvents."""
    if hint is ServerSentEvent:
        return Any, True
    if typing.get_origin(hint) is ServerSentEvent:
        return typing.get_args(hint)[0], True
    return hint, False
