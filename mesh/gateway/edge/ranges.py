"""Parts of a complete answer: the Range header. Pure. Source: RFC 9110, section 14."""

from __future__ import annotations

import re
import secrets
from itertools import pairwise
from typing import Final, NamedTuple

from mesh.errors import BadRequest

_SPEC: Final = re.compile(r"(\d{0,18})-(\d{0,18})")
#: A header that is longer is not read: with the default of 8 ranges no client needs more.
_LONGEST: Final = 4000


class RangeNotSatisfiable(BadRequest):
    """None of the requested ranges is in the answer, there are too many, or they overlap."""

    code = "range_not_satisfiable"
    status = 416


class Part(NamedTuple):
    """Bytes from `start` up to `end`, which is not included."""

    start: int
    end: int


def read_ranges(header: str, size: int, most: int) -> list[Part]:
    """The requested parts of a body; [] when the header is to be ignored, because it is malformed or of another unit.

    Args:
        size: of the whole body, in bytes.
        most: how many parts are allowed.

    Raises:
        RangeNotSatisfiable: no part is within the body, there are too many, or two overlap.
    """
    unit, equals, specs = header[:_LONGEST].partition("=")
    if unit.strip().lower() != "bytes" or not equals or len(header) > _LONGEST:
        return []
    parts: list[Part] = []
    listed = 0
    for text in specs.split(","):
        found = _SPEC.fullmatch(text.strip())
        if found is None or not (found[1] or found[2]):
            return []
        listed += 1
        if not found[1]:
            start, end = max(0, size - int(found[2])), size
        else:
            start, end = int(found[1]), min(size, int(found[2]) + 1 if found[2] else size)
            if found[2] and int(found[2]) < start:
                return []
        if start < end:
            parts.append(Part(start, end))
    if listed > most:
        raise RangeNotSatisfiable(
            f"Range: {listed} ranges are requested; at most {most} are answered", details=_DETAILS
        )
    if not parts:
        raise RangeNotSatisfiable(
            f"Range: the answer has {size} bytes, and none is in a requested range", details=_DETAILS
        )
    ordered = sorted(parts)
    if any(later.start < earlier.end for earlier, later in pairwise(ordered)):
        raise RangeNotSatisfiable("Range: the requested ranges overlap", details=_DETAILS)
    return parts


_DETAILS: Final = {"path": "header.Range"}


def content_range(part: Part, size: int) -> bytes:
    """The Content-Range line of one part."""
    return b"Content-Range: bytes %d-%d/%d\r\n" % (part.start, part.end - 1, size)


def multipart(body: memoryview, parts: list[Part], content_type: str) -> tuple[bytes, str]:
    """A body of several parts, and its media type."""
    boundary = secrets.token_hex(16)
    typed = f"Content-Type: {content_type}\r\n".encode("latin-1", "replace") if content_type else b""
    pieces: list[bytes | memoryview] = []
    for part in parts:
        pieces += (
            b"\r\n--%b\r\n%b%b\r\n" % (boundary.encode(), typed, content_range(part, len(body))),
            body[part.start : part.end],
        )
    pieces.append(b"\r\n--%b--\r\n" % boundary.encode())
    return b"".join(pieces), f"multipart/byteranges; boundary={boundary}"
