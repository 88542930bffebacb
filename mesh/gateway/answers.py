"""Converts the answer of a call to an HTTP answer.

Owns: content types, and re-encoding when client and worker use different encodings. Pure.
Leaves to others: writing it (reply), errors (problems), streams (sse).
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from mesh.calls.results import find_not_finite
from mesh.errors import BadReply
from mesh.gateway.media import BINARY_TYPE, JSON_TYPE, MSGPACK_TYPE, essence
from mesh.gateway.ports import Answer, Buffer
from mesh.gateway.reply import NOSNIFF, Reply
from mesh.protocol.http_head import from_meta, lines
from mesh.protocol.messages import JSON, MSGPACK, RAW

_encode_json = msgspec.json.Encoder().encode
_encode_msgpack = msgspec.msgpack.Encoder().encode
#: The encodings of None: a redirect has no body then.
_NOTHING: Final = (b"null", b"\xc0")
_TEXT: Final = "text/"


def to_reply(answer: Answer, status: int = 200, produces: str = "", *, msgpack: bool = False) -> Reply:
    """The HTTP answer for a call's answer.

    Args:
        status: of a success, as the route declares it.
        produces: the route's Content-Type; "" derives it from the encoding.
        msgpack: the client accepts MessagePack and asks for it.

    Raises:
        BadReply: the worker's body does not have the declared encoding.
    """
    meta = answer.meta
    if meta:
        return _with_head(answer, meta, status, produces, msgpack=msgpack)
    if answer.encoding == JSON and not produces and not msgpack:
        return Reply(answer.body, JSON_TYPE, status)
    return _to_reply(answer, status, produces, msgpack=msgpack)


def _with_head(answer: Answer, meta: Mapping[str, str], status: int, produces: str, *, msgpack: bool) -> Reply:
    """The HTTP answer for an answer with a status, header fields or cookies of its handler."""
    try:
        head = from_meta(meta)
    except ValueError as exc:
        raise BadReply(f"the worker's answer has an invalid head: {exc}") from exc
    status = head.status or status
    fields = []
    for name, value in head.fields:
        if name.lower() == "content-type":
            produces = value
        else:
            fields.append((name, value))
    if status == 205 or (300 <= status <= 399 and answer.body in _NOTHING):
        reply = Reply(b"", "", status)
    else:
        reply = _to_reply(answer, status, produces, msgpack=msgpack)
    reply.extra += lines(fields)
    return reply


def _to_reply(answer: Answer, status: int, produces: str, *, msgpack: bool) -> Reply:
    if answer.encoding == JSON and not produces and not msgpack:
        return Reply(answer.body, JSON_TYPE, status)
    if answer.encoding == RAW:
        return Reply(answer.body, produces or BINARY_TYPE, status, NOSNIFF)
    if produces and not msgpack:
        return _produced(answer, status, produces)
    if msgpack:
        body = answer.body if answer.encoding == MSGPACK else _encode_msgpack(value_of(answer))
        return Reply(body, MSGPACK_TYPE, status)
    return Reply(json_of(answer), JSON_TYPE, status)


def _produced(answer: Answer, status: int, produces: str) -> Reply:
    name = essence(produces)
    if name == JSON_TYPE or name.endswith("+json"):
        return Reply(json_of(answer), produces, status)
    value = value_of(answer)
    # With a type other than JSON, a str is sent as text, not as a JSON string.
    if isinstance(value, str):
        full = f"{produces}; charset=utf-8" if name.startswith(_TEXT) and "charset" not in produces else produces
        return Reply(value.encode("utf-8", "replace"), full, status, NOSNIFF)
    return Reply(json_of(answer), produces, status)


def value_of(answer: Answer) -> Any:
    """The plain value of an answer. Raises BadReply."""
    try:
        if answer.encoding == JSON:
            return msgspec.json.decode(answer.body)
        if answer.encoding == MSGPACK:
            return msgspec.msgpack.decode(answer.body)
    except (msgspec.DecodeError, RecursionError) as exc:
        raise BadReply(f"the worker's answer cannot be read ({exc})") from exc
    return bytes(answer.body)


def json_of(answer: Answer) -> Buffer:
    """The answer as JSON; raw bytes become a base64 string. Raises BadReply."""
    if answer.encoding == JSON:
        return answer.body
    if answer.encoding == RAW:
        return b'"%b"' % b64encode(answer.body)
    value = value_of(answer)
    try:
        body = _encode_json(value)
        # As for JSON from the worker: null would be another value.
        if b"null" in body and (found := find_not_finite(value)) is not None:
            raise ValueError(f"{found[0]} at {found[1]}")
    except (
        TypeError,
        ValueError,
        RecursionError,
    ) as exc:  # maps with keys that JSON does not support, text that is not Unicode
        raise BadReply(
            f"the worker's answer cannot be encoded as JSON ({exc}); ask for it with Accept: {MSGPACK_TYPE}"
        ) from exc
    return body
