"""Frames that are the same for every client: built once, and written to many connections.

Owns: the bytes of a frame from a server without compression. Pure.
Leaves to others: all other frames, and reading (aiohttp).

Source: RFC 6455, section 5.2. Frames of a server are not masked.
"""

from __future__ import annotations

import struct
from typing import Final

from mesh.protocol.codec import Buffer

TEXT: Final = 0x1
BINARY: Final = 0x2
_FINAL: Final = 0x80


def frame(opcode: int, payload: Buffer) -> bytes:
    """A complete message in one frame."""
    size = len(payload)
    if size < 126:
        head = struct.pack("!BB", _FINAL | opcode, size)
    elif size < 1 << 16:
        head = struct.pack("!BBH", _FINAL | opcode, 126, size)
    else:
        head = struct.pack("!BBQ", _FINAL | opcode, 127, size)
    return head + bytes(payload)
