"""Orders of a WebSocket's handler to the gateway that holds the connection: which topics the client receives.

Owns: the form of these orders, and sending them as items of the handler's stream.
Leaves to others: carrying them out (gateway.websocket), the public names (mesh.http).

An order is an item in MessagePack; the gateway asks for JSON, so other items are JSON or bytes.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from mesh.calls.items import running_stream, send_item
from mesh.errors import SetupError
from mesh.protocol.codec import Buffer
from mesh.protocol.messages import MSGPACK

#: Metadata of the stream of a WebSocket: the subprotocol that was agreed on; "" for none.
WEBSOCKET: Final = "mesh.websocket"


class Order(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """One order.

    Attributes:
        verb: "join" begins to send the events of a topic to the client, "leave" ends it.
        topic: without wildcards.
    """

    verb: Literal["join", "leave"]
    topic: str


_pack: Final = msgspec.msgpack.Encoder().encode
_unpack: Final = msgspec.msgpack.Decoder(Order).decode


def read_order(body: Buffer) -> Order:
    """Decode an order.

    Raises:
        msgspec.DecodeError: it is not one.
    """
    return _unpack(body)


async def join(topic: str) -> None:
    """Send the events of a topic to the client of this WebSocket, from now on: `await http.join(f"room.{room}")`.

    The route must declare the topic: `@http.websocket("/chat/{room}", topics=["room.*"])`. The gateway itself sends the
    data of each event as one message: text for a str, binary for bytes, JSON otherwise.

    Raises:
        SetupError: the code does not run in a handler of a WebSocket.
    """
    await _send(Order("join", topic))


async def leave(topic: str) -> None:
    """Send the events of a topic no more. No effect when the client does not receive them.

    Raises:
        SetupError: the code does not run in a handler of a WebSocket.
    """
    await _send(Order("leave", topic))


async def _send(order: Order) -> None:
    running = running_stream()
    if running is None or WEBSOCKET not in running.meta:
        raise SetupError(f"http.{order.verb}({order.topic!r}) works only in the handler of a WebSocket")
    await send_item(running, _pack(order), MSGPACK)
