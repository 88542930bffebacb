"""How deeply the JSON of a request body is nested.

Owns: measuring it without decoding, in steps between which other requests run. Leaves to others: the limit (config),
decoding (binding, workers).

Decoders use stack for each level, so that a few kilobytes of `[[[[` exhaust it. They stop at the recursion limit of the
interpreter, which depends on its version and on what is running. The limit here is exact, and it holds before the body
is sent to a worker.
"""

from __future__ import annotations

import asyncio
from array import array
from itertools import accumulate
from typing import Final

from mesh.errors import BadArguments
from mesh.gateway.limits import exceeded
from mesh.gateway.ports import Recorder

#: Everything but brackets, braces and quotes.
_OTHERS: Final = bytes(each for each in range(256) if each not in b'[]{}"')
#: Opening brackets as +1, closing ones as -1, in the form of a signed byte.
_STEPS: Final = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")

#: The brackets to look at in one go: about 1 ms.
_AT_ONCE: Final = 32 * 1024


def may_be_deep(body: bytes, most: int) -> bool:
    """Whether a body has more brackets than levels are allowed; nearly none has, and needs no further look."""
    return len(body) > 2 * most and body.count(b"[") + body.count(b"{") > most


def depth_of(text: bytes) -> int:
    """The levels of arrays and objects in a short JSON text."""
    return max(accumulate(array("b", brackets(text)), initial=0))


async def check_depth(body: bytes, most: int, recorder: Recorder) -> None:
    """Reject JSON that is nested too deeply. JSON that is malformed is left to the decoder.

    Args:
        recorder: counts the bodies that are rejected.

    Raises:
        BadArguments: it has more than `most` levels of arrays and objects.
    """
    shape = brackets(body)
    depth = 0
    for at in range(0, len(shape), _AT_ONCE):
        if at:
            await asyncio.sleep(0)
        steps = array("b", shape[at : at + _AT_ONCE])
        if max(accumulate(steps, initial=depth)) > most:
            exceeded(recorder, "max_json_depth")
            raise BadArguments(
                f"body: is nested more deeply than {most} levels; gateway.max_json_depth in mesh.toml raises the limit",
                details={"path": "body", "limit": most},
            )
        depth += sum(steps)


def brackets(body: bytes) -> bytes:
    """The brackets and braces of JSON, without those in strings, as signed steps."""
    if b"\\" in body:
        # Pairs of backslashes first: the quote in `\\"` ends a string, and the one in `\"` does not.
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    shape = body.translate(None, _OTHERS)
    if b'"' in shape:
        # Strings without brackets; then the others: every second part is the inside of a string.
        shape = shape.replace(b'""', b"")
        if b'"' in shape:
            shape = b"".join(shape.split(b'"')[::2])
    return shape.translate(_STEPS)
