"""Segments of a request's path: percent-decoding, and which of them are refused.

Owns: these rules, for declared routes and for mounts. Pure.
Leaves to others: which route or mount a path belongs to (routes, mounts.registry).
"""

from __future__ import annotations

from typing import Final
from urllib.parse import unquote_to_bytes

from mesh.errors import BadRequest

_CLIMBING: Final = frozenset({"", ".", ".."})


def may_climb(path: str) -> bool:
    """Whether a raw path contains anything that `is_unsafe` could find; nearly all paths do not."""
    return "%" in path or "/." in path or "//" in path or "\\" in path or path[-1] == "/"


def is_unsafe(segment: str) -> bool:
    """Whether a decoded segment would escape the directory to which code joins it."""
    return segment in _CLIMBING or "/" in segment or "\\" in segment or "\0" in segment


def unsafe(value: str) -> BadRequest:
    """The error for an unsafe value."""
    return BadRequest(
        f'path: {value[:80]!a} is not accepted: a segment may not be empty, "." or "..", and may not contain a '
        "slash, a backslash or NUL, even percent-encoded; send such text in the query",
        details={"path": "path"},
    )


def decode_segment(part: str) -> str:
    """Undo percent-encoding. Raises BadRequest when the bytes are not UTF-8."""
    try:
        return unquote_to_bytes(part).decode("utf-8")
    except UnicodeError as exc:
        raise BadRequest(
            f"path segment {part!a} is not UTF-8; percent-encode it as UTF-8", details={"path": "path"}
        ) from exc


def split_path(path: str) -> list[str]:
    """The decoded segments of a raw path; [] for "" and "/".

    Raises:
        BadRequest: a segment is not UTF-8, or unsafe.
    """
    if path in ("", "/"):
        return []
    # Split before decoding: an encoded slash is part of its segment.
    segments = [decode_segment(part) for part in path.removeprefix("/").split("/")]
    for segment in segments:
        if is_unsafe(segment):
            raise unsafe(segment)
    return segments
