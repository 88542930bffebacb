"""Bodies of answers: decoding them into values, and the results of a scatter.

Owns: decoding without a known type, and the types that callers get.
Leaves to others: typed decoding (signature), encoding (signature).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec

from mesh.discovery.record import Instance
from mesh.errors import BadReply, MeshError
from mesh.protocol.codec import Buffer
from mesh.protocol.messages import JSON, MSGPACK, RAW


class Answer(NamedTuple):
    """An encoded answer, for code that forwards it without decoding it. See docs/wire.md.

    Attributes:
        body: bytes or memoryview.
        encoding: MSGPACK, JSON or RAW of mesh.protocol.messages.
        meta: metadata that the handler sent with the answer.
    """

    body: Buffer
    encoding: int
    meta: Mapping[str, str] | None = None


class Outcome(NamedTuple):
    """The result of one instance in a scatter: a value or an error.

    Example::

        for outcome in await n.scatter("greeting.hello", "ujun"):
            print(outcome.instance.id, outcome.value if outcome.ok else outcome.error)

    Attributes:
        instance: the instance that was asked.
        value: its answer; None when it failed.
        error: why it failed, or None.
    """

    instance: Instance
    value: Any = None
    error: MeshError | None = None

    @property
    def ok(self) -> bool:
        """Whether the result is a value."""
        return self.error is None


def decode_any(body: Buffer, encoding: int) -> Any:
    """Decode a body without a declared type into plain Python values.

    Raises:
        BadReply: the bytes are not what the encoding promises.
    """
    try:
        if encoding == MSGPACK:
            return msgspec.msgpack.decode(body)
        if encoding == RAW:
            return bytes(body)
        if encoding == JSON:
            return msgspec.json.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError, MemoryError) as exc:
        raise BadReply(f"the answer cannot be decoded: {exc}") from exc
    raise BadReply(f"the answer has an unknown encoding: {encoding}")


def typed_decoder(target: str, hint: Any) -> Callable[[Buffer, int], Any]:
    """A decoder of answers into the annotated type; its errors name `target`."""
    if hint is Any:
        return decode_any
    packed = msgspec.msgpack.Decoder(hint).decode
    text = msgspec.json.Decoder(hint).decode

    def decode(body: Buffer, encoding: int) -> Any:
        try:
            if encoding == MSGPACK:
                return packed(body)
            if encoding == RAW:
                return msgspec.convert(bytes(body), hint)
            return text(body)
        # A type's own checks may raise anything.
        except Exception as exc:
            raise BadReply(f"{target}: the answer does not match its annotation: {exc}") from exc

    return decode


def as_answer(body: Buffer, encoding: int) -> Answer:
    """The body itself, undecoded."""
    return Answer(body, encoding)
