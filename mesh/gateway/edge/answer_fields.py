"""The header lines of an answer that is not written yet: finding, replacing and removing fields.

Owns: this. Pure. The lines come from mesh.protocol.http_head, so each is `Name: value`, ended by CR LF.
"""

from __future__ import annotations

from collections.abc import Iterator


def lines_of(extra: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The lines with their names in lower case."""
    for line in extra.splitlines(keepends=True):
        yield line.partition(b":")[0].lower(), line


def value_of(extra: bytes, name: bytes) -> bytes | None:
    """The value of a field; of a field with several lines, all of them as a list; None when it is missing.

    Args:
        name: in lower case.
    """
    if name not in extra.lower():
        return None
    found = [line.partition(b":")[2].strip() for each, line in lines_of(extra) if each == name]
    return b", ".join(found) if found else None


def without(extra: bytes, *names: bytes) -> bytes:
    """The lines without these fields, named in lower case."""
    return b"".join(line for name, line in lines_of(extra) if name not in names)


def names_in(extra: bytes) -> set[bytes]:
    """The names of all fields, in lower case."""
    return {name for name, _ in lines_of(extra)}


def directives(value: bytes | None) -> set[bytes]:
    """The names in a list such as Cache-Control, in lower case, without their arguments."""
    return {part.partition(b"=")[0].strip().lower() for part in (value or b"").split(b",")} - {b""}
