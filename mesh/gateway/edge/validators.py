"""Conditional requests: whether an answer is still the one that a client has. Pure. Source: RFC 9110, section 13."""

from __future__ import annotations

import re
from email.utils import parsedate_to_datetime
from typing import Any, Final, NamedTuple

from aiohttp import hdrs

from mesh.errors import BadRequest

_TAG: Final = re.compile(r'\s*((?:W/)?"[\x21\x23-\x7e\x80-\U0010ffff]*")\s*(?:,|$)')
#: The most tags of one header that are compared.
_MOST_TAGS: Final = 100


class PreconditionFailed(BadRequest):
    """If-Match or If-Unmodified-Since does not hold for the answer."""

    code = "precondition_failed"
    status = 412


class Validators(NamedTuple):
    """Attributes:
    tag: the ETag with its quotes; "" for none.
    modified_at: Last-Modified, in seconds since 1970; None for none.
    """

    tag: str
    modified_at: float | None

    @property
    def is_strong(self) -> bool:
        """Whether equal tags stand for equal bytes."""
        return bool(self.tag) and not self.tag.startswith("W/")


def read_date(value: str | None) -> float | None:
    """Seconds since 1970 of an HTTP date; None when it is missing or malformed."""
    if value is None:
        return None
    try:
        return parsedate_to_datetime(value).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None


def _tags(header: str) -> list[str]:
    """The tags of If-Match or If-None-Match, up to the first that is malformed."""
    found: list[str] = []
    at = 0
    while len(found) < _MOST_TAGS and (match := _TAG.match(header, at)):
        found.append(match[1])
        at = match.end()
    return found


def _opaque(tag: str) -> str:
    return tag.removeprefix("W/")


def unchanged(headers: Any, validators: Validators) -> bool:
    """Whether the client has the answer already, so that a 304 suffices. For GET and HEAD.

    Args:
        headers: of the request.

    Raises:
        PreconditionFailed: the client wants another answer or none (If-Match, If-Unmodified-Since).
    """
    tag, modified_at = validators
    # The order of RFC 9110, section 13.2.2.
    if hdrs.IF_MATCH in headers:
        wanted = ",".join(headers.getall(hdrs.IF_MATCH)).strip()
        if wanted != "*" and not (validators.is_strong and tag in _tags(wanted)):
            raise PreconditionFailed("If-Match: the answer has another ETag", details={"path": "header.If-Match"})
    elif hdrs.IF_UNMODIFIED_SINCE in headers:
        limit = read_date(headers[hdrs.IF_UNMODIFIED_SINCE])
        if limit is not None and modified_at is not None and modified_at > limit:
            raise PreconditionFailed(
                "If-Unmodified-Since: the answer has changed since", details={"path": "header.If-Unmodified-Since"}
            )
    if hdrs.IF_NONE_MATCH in headers:
        known = ",".join(headers.getall(hdrs.IF_NONE_MATCH)).strip()
        # The weak comparison: a compressed answer has the same tag, marked as weak.
        return known == "*" or (bool(tag) and _opaque(tag) in map(_opaque, _tags(known)))
    since = read_date(headers.get(hdrs.IF_MODIFIED_SINCE))
    return since is not None and modified_at is not None and modified_at <= since


def range_applies(headers: Any, validators: Validators) -> bool:
    """Whether If-Range allows a part of the answer: the client has other parts of exactly this one."""
    wanted = headers.get(hdrs.IF_RANGE)
    if wanted is None:
        return True
    if wanted.strip().startswith(('"', "W/")):
        return validators.is_strong and wanted.strip() == validators.tag
    since = read_date(wanted)
    return since is not None and validators.modified_at == since
