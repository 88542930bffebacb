"""The items between a gateway and a worker for one request to an application. Pure.

Owns: their form, and checking what comes from an application.
Leaves to others: ASGI (asgi), HTTP (gateway.apps).

| item | meaning |
|---|---|
| to the worker: bytes | a chunk of the body; a binary message of a WebSocket |
| to the worker: text, [code, reason] | a text message; the close frame |
| to the gateway, first: [status, headers, body, more] | the response up to its first chunk |
| to the gateway: bytes | a further chunk; a binary message |
| to the gateway: ["accept", subprotocol, headers], ["text", text], ["close", code, reason] | of a WebSocket |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from mesh.protocol.codec import Buffer

#: Keys of the scope that are not ASGI's: the first part of the body, and whether more follows as items.
BODY: Final = "mesh.body"
MORE: Final = "mesh.more"
#: The key in `scope["state"]` of the service that runs the application: its verbs (`call`, `emit`, `defer` …).
STATE: Final = "mesh"

Headers = list[tuple[bytes, bytes]]


class Head(msgspec.Struct, array_like=True, frozen=True):
    """The beginning of a response."""

    status: int
    headers: Headers
    body: bytes
    more: bool


_pack: Final = msgspec.msgpack.Encoder().encode
_unpack: Final = msgspec.msgpack.Decoder(Head).decode
_unpack_any: Final = msgspec.msgpack.Decoder().decode


def head_item(start: Mapping[str, Any], body: Buffer, more: bool) -> bytes:
    """The first item of a response, from an http.response.start and the first body.

    Raises:
        TypeError, ValueError: the message is malformed.
    """
    headers = [(bytes(name), bytes(value)) for name, value in start.get("headers", ())]
    return _pack((int(start["status"]), headers, bytes(body), more))


def read_head(body: Buffer) -> Head:
    """Decode the first item of a response.

    Raises:
        msgspec.DecodeError: it is not one.
    """
    return _unpack(body)


def ws_item(message: Mapping[str, Any]) -> bytes:
    """The item for an ASGI message of a WebSocket other than bytes.

    Raises:
        RuntimeError: the message is not supported.
    """
    kind = message["type"]
    if kind == "websocket.accept":
        headers = [(bytes(name), bytes(value)) for name, value in message.get("headers", ())]
        return _pack(("accept", message.get("subprotocol"), headers))
    if kind == "websocket.send":
        return _pack(("text", message["text"]))
    if kind == "websocket.close":
        return _pack(("close", int(message.get("code", 1000)), str(message.get("reason") or "")))
    raise RuntimeError(f"the ASGI message {kind!r} is not supported for a WebSocket")


def read_ws(body: Buffer) -> list[Any]:
    """Decode an item of a WebSocket.

    Raises:
        ValueError: it is not one.
    """
    try:
        item = _unpack_any(body)
    except msgspec.DecodeError as exc:
        raise ValueError(str(exc)) from exc
    if not isinstance(item, list) or not item or item[0] not in ("accept", "text", "close"):
        raise ValueError("it is not an item of a WebSocket")
    return item
