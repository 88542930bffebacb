"""A request's body, read off the connection.

Owns: the size limit, `Expect: 100-continue`, and how long a slow sender is waited for.
Leaves to others: parsing HTTP (aiohttp), what the body means (binding).
"""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp import hdrs, web
from aiohttp.web_exceptions import HTTPRequestEntityTooLarge
from aiohttp.web_protocol import RequestPayloadError

from mesh.errors import BadRequest, TooLarge

_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class BadBody(BadRequest):
    """The body's framing or compression is broken, or the client closed before it was complete."""

    code = "bad_body"


class SlowBody(BadRequest):
    """The body did not come within the request's time."""

    code = "slow_body"
    status = 408


async def read_body(request: web.BaseRequest, most: int, timeout: float) -> bytes:
    """All of the body.

    Args:
        most: bytes that are accepted; what is announced as larger is refused before it is read.
        timeout: seconds to wait for it.

    Raises:
        TooLarge: it is larger than `most`.
        SlowBody: it did not come in time.
        BadBody: it cannot be read.
    """
    announced = request.headers.get(hdrs.CONTENT_LENGTH)
    if announced is not None and announced.isdecimal() and int(announced) > most:
        raise _too_large(most)
    if hdrs.EXPECT in request.headers and request.headers[hdrs.EXPECT].lower() == "100-continue":
        transport = request.transport
        if transport is not None:
            transport.write(_CONTINUE)
    try:
        if request.content.is_eof():
            return await request.read()
        async with asyncio.timeout(timeout):
            return await request.read()
    except HTTPRequestEntityTooLarge as exc:
        raise _too_large(most) from exc
    except TimeoutError as exc:
        raise SlowBody(f"the body did not come within {timeout:g} s") from exc
    except (RequestPayloadError, web.PayloadAccessError) as exc:
        raise BadBody(f"the body cannot be read: {exc}") from exc


def _too_large(most: int) -> TooLarge:
    return TooLarge(
        f"the body is larger than {most} bytes; gateway.max_body in mesh.toml raises the limit",
        details={"limit_bytes": most},
    )
