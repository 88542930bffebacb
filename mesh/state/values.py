"""Values of state: the user's view of a value, and its encoding.

Owns: encoding and decoding MessagePack, type checks, and their error messages.
Leaves to others: sizes and names (namespace, names), storing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec

from mesh.errors import BadArguments, BadReply

T = TypeVar("T")

_pack = msgspec.msgpack.Encoder().encode


class Value(NamedTuple, Generic[T]):
    """A key as it was read: `cart, etag = await carts.get("u1")`.

    Attributes:
        value: None when the key is absent (a None that was stored looks the same: see `exists`).
        etag: names this version of the value; "" when the key is absent.
    """

    value: T | None
    etag: str

    @property
    def exists(self) -> bool:
        """Whether the key was there."""
        return bool(self.etag)


ABSENT: Value[Any] = Value(None, "")


def encode(namespace: str, key: str, value: Any, hint: Any = Any) -> bytes:
    """Encode a value; `hint` is the type as which the namespace is read.

    Raises:
        BadArguments: MessagePack cannot encode the value, or it is not of type `hint`.
    """
    try:
        body = _pack(value)
    # A type's own conversion may raise anything.
    except Exception as exc:
        raise BadArguments(
            f'state "{namespace}", key "{key}": a value of type {type(value).__qualname__} cannot be stored: {exc}. '
            "Store plain values, msgspec Structs, dataclasses or bytes."
        ) from exc
    if hint is not Any:
        try:
            _decoder(hint)(body)
        except Exception as exc:
            raise BadArguments(
                f'state "{namespace}", key "{key}": a value of type {type(value).__qualname__} is not '
                f"{_named(hint)}, the type of this namespace: {exc}"
            ) from exc
    return body


def decode(namespace: str, key: str, body: bytes, hint: Any) -> Any:
    """Decode a value of type `hint`.

    Raises:
        BadReply: something else is stored there.
    """
    try:
        return _decoder(hint)(body)
    # A type's own checks may raise anything.
    except Exception as exc:
        raise BadReply(
            f'state "{namespace}", key "{key}": the stored value is not {_named(hint)}: {exc}. '
            "Read it without a type to inspect it, then write it again."
        ) from exc


def check_type(hint: Any) -> Any:
    """The type itself.

    Raises:
        BadArguments: msgspec cannot read values into it.
    """
    try:
        _decoder(hint)
    except TypeError as exc:
        raise BadArguments(f"state: type={_named(hint)} cannot be read from MessagePack: {exc}") from exc
    return hint


# Making a decoder walks the type, which costs as much as a hundred decodes. 256: a program reads few types.
@lru_cache(maxsize=256)
def _decoder(hint: Any) -> Callable[[bytes], Any]:
    return msgspec.msgpack.Decoder(hint).decode


def _named(hint: Any) -> str:
    return getattr(hint, "__qualname__", None) or str(hint)
