"""Requests that another server could read as more, fewer or other requests.

Owns: refusing framing and targets that are legal for aiohttp's parser, and that a proxy in front may read differently.
Leaves to others: parsing, which refuses most of them (aiohttp; admission answers), bodies (body).

tests/gateway/test_smuggling.py has the shapes, and says which of the two refuses each.
"""

from __future__ import annotations

from typing import Any, Final

from aiohttp import hdrs
from aiohttp.http import HttpVersion11

from mesh.errors import BadRequest
from mesh.gateway.decompress import check_transfer_coding

TRANSFER_ENCODING: Final = hdrs.TRANSFER_ENCODING


class BadFraming(BadRequest):
    """Two servers could disagree about where the request ends, or what it is for."""

    code = "bad_framing"


def check_framing(raw: Any) -> None:
    """Reject ambiguous framing of a request with Transfer-Encoding, and let no request follow one with Upgrade.

    The connection ends with the answer to a request that is refused here, and with a declined upgrade.

    Raises:
        BadFraming: it is of HTTP/1.0 and has a Transfer-Encoding, or the field is empty (RFC 9112, section 6.1).
        UnsupportedEncoding: it has a transfer coding other than `chunked`.
    """
    if TRANSFER_ENCODING in raw.headers:
        try:
            _check_coding(raw.headers[TRANSFER_ENCODING], raw)
        except BadRequest:
            close_after(raw)
            raise
    if raw._message.upgrade:
        # The upgrade is declined. What follows may be of the other protocol, so it is not read as a request.
        close_after(raw)


def _check_coding(coding: str, raw: Any) -> None:
    if raw.version < HttpVersion11:
        raise BadFraming("Transfer-Encoding: HTTP/1.0 has none; send HTTP/1.1")
    if not coding.strip():
        raise BadFraming("Transfer-Encoding: is empty")
    check_transfer_coding(coding)


def check_target(target: str) -> None:
    """Reject a request target with a fragment, which belongs to the client alone (RFC 9112, section 3.2).

    Raises:
        BadFraming: it has one.
    """
    if "#" in target:
        raise BadFraming("the request target contains a fragment (#…), which clients must not send")


def close_after(raw: Any) -> None:
    """Close the connection once this request is answered."""
    raw._message = raw._message._replace(should_close=True)
