"""The asynchronous iterator among the arguments of a call: the items of a client stream.

Owns: finding it, and encoding its items.
Leaves to others: sending them (outbound), encoding the other arguments (signature).
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Mapping
from typing import Any, Final

import msgspec

from mesh.calls.options import CallOptions
from mesh.calls.outbound import Source
from mesh.calls.signature import encode_arguments
from mesh.errors import BadArguments
from mesh.protocol.messages import MSGPACK, RAW

_pack: Final = msgspec.msgpack.Encoder().encode
_BINARY: Final = (bytes, bytearray, memoryview)


def encode_with_source(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], target: str, options: CallOptions
) -> tuple[bytes, CallOptions]:
    """Encode the arguments of a call with a client stream: those beside the iterator, and options with its items.

    Raises:
        BadArguments: an argument cannot be encoded, or there are several iterators.
    """
    args, named, items = take_source(args, kwargs)
    body = encode_arguments(args, named, target)
    return body, options if items is None else msgspec.structs.replace(options, source=encoded(target, items))


def take_source(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """Separate the asynchronous iterator among the arguments of a call from the others.

    Returns:
        The other arguments, by position and by name, and the iterator; None when there is none.

    Raises:
        BadArguments: there are several.
    """
    found = [value for value in (*args, *kwargs.values()) if isinstance(value, AsyncIterable)]
    if len(found) > 1:
        raise BadArguments("a call sends one stream of items: pass one asynchronous iterator")
    source = found[0] if found else None
    if source is None:
        return args, dict(kwargs), None
    return (
        tuple(value for value in args if value is not source),
        {name: value for name, value in kwargs.items() if value is not source},
        source,
    )


async def encoded(target: str, items: AsyncIterable[Any]) -> Source:
    """The items of a user's iterator, encoded: bytes as they are, everything else as MessagePack.

    Raises:
        BadArguments: an item cannot be encoded.
    """
    number = 0
    iterator = aiter(items)
    try:
        async for item in iterator:
            if isinstance(item, _BINARY):
                yield item, RAW
            else:
                try:
                    body = _pack(item)
                except Exception as exc:
                    raise BadArguments(
                        f"item {number} of the stream to {target} cannot be sent ({type(item).__qualname__}): {exc}"
                    ) from exc
                yield body, MSGPACK
            number += 1
    finally:
        close = getattr(iterator, "aclose", None)
        if close is not None:
            await close()
