"""Conditional and partial requests: which answer the header fields of a request ask for.

Owns: If-Match, If-None-Match, If-Modified-Since, If-Unmodified-Since, Range and If-Range. Pure.
Leaves to others: the file (files), writing the answer (mounts.static).

Source: RFC 9110, sections 13 and 14.
"""

from __future__ import annotations

import re
from email.utils import parsedate_to_datetime
from typing import Final, NamedTuple

from multidict import CIMultiDictProxy

_RANGE: Final = re.compile(r"bytes=[ \t]*(\d{0,18})-(\d{0,18})[ \t]*", re.IGNORECASE | re.ASCII)
_TAG: Final = re.compile(r'(?:W/)?"[^"\x00-\x20\x7f]*"')


class Span(NamedTuple):
    """A part of a body: the first byte, and the byte after the last one."""

    start: int
    stop: int


#: The range begins behind the end of the body.
UNSATISFIABLE: Final = Span(-1, -1)


def read_date(value: str | None) -> int | None:
    """An HTTP date in seconds since the epoch; None when there is none, or an invalid one, which is to be ignored."""
    if not value:
        return None
    try:
        return int(parsedate_to_datetime(value).timestamp())
    except (ValueError, TypeError, OverflowError):
        return None


def status_of(headers: CIMultiDictProxy[str], etag: str, modified_s: int) -> int:
    """200, 304 (the client's copy is current) or 412 (the client requires another version), for GET and HEAD.

    Args:
        etag: the entity tag of the body, with its quotes.
        modified_s: when it was last modified, in seconds since the epoch.
    """
    if "If-Match" in headers:
        wanted = ",".join(headers.getall("If-Match"))
        if wanted.strip() != "*" and etag not in _TAG.findall(wanted):
            return 412
    elif (since := read_date(headers.get("If-Unmodified-Since"))) is not None and modified_s > since:
        return 412
    if "If-None-Match" in headers:
        known = ",".join(headers.getall("If-None-Match"))
        tags = [tag.removeprefix("W/") for tag in _TAG.findall(known)]
        return 304 if known.strip() == "*" or etag.removeprefix("W/") in tags else 200
    since = read_date(headers.get("If-Modified-Since"))
    return 304 if since is not None and modified_s <= since else 200


def span_of(headers: CIMultiDictProxy[str], size: int, etag: str, modified_s: int) -> Span | None:
    """The part of the body that a GET asks for.

    Returns:
        None for all of it: without a range, with several, with one that cannot be read, and when If-Range names another
        version. UNSATISFIABLE when the range holds no byte of the body.
    """
    value = headers.get("Range")
    if value is None:
        return None
    condition = headers.get("If-Range")
    # A date is a strong validator only when it is exact (section 13.1.5).
    if condition is not None and condition.strip() != etag and read_date(condition) != modified_s:
        return None
    found = _RANGE.fullmatch(value.strip())
    if found is None:
        return None
    first, last = found.groups()
    if not first:
        if not last:
            return None
        length = min(int(last), size)
        return Span(size - length, size) if length else UNSATISFIABLE
    start, stop = int(first), min(int(last) + 1, size) if last else size
    if last and int(last) < start:
        return None
    return Span(start, stop) if start < size else UNSATISFIABLE
