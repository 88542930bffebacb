"""One health check of a program.

Owns: the request, and when its answer counts as healthy.
Leaves to others: when to check, and what follows (program, policy.program_health).
"""

from __future__ import annotations

import asyncio
from typing import Final

from mesh.discovery.http_address import HttpAddress

#: Statuses from here on are no success.
_BAD_STATUS: Final = 400
_STATUS_LINE_BYTES: Final = 1024


async def check(address: HttpAddress, path: str, timeout_s: float) -> str:
    """Check a program once.

    Args:
        path: what to GET; "" only connects.

    Returns:
        Why it is not healthy; "" when it is.
    """
    try:
        async with asyncio.timeout(timeout_s):
            return await _check(address, path)
    except TimeoutError:
        return f"no answer within {timeout_s:g} s"
    except OSError as exc:
        return f"no connection: {exc.strerror or exc}"


async def _check(address: HttpAddress, path: str) -> str:
    if address.socket:
        reader, writer = await asyncio.open_unix_connection(address.socket, limit=_STATUS_LINE_BYTES)
    else:
        reader, writer = await asyncio.open_connection(address.host, address.port, limit=_STATUS_LINE_BYTES)
    try:
        if not path:
            return ""
        # "localhost" is accepted by the frameworks that check the Host header.
        writer.write(
            f"GET {path} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: mesh-health\r\nConnection: close\r\n\r\n".encode()
        )
        await writer.drain()
        try:
            line = await reader.readuntil(b"\n")
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            return f"GET {path}: the answer is not HTTP"
        words = line.split(None, 2)
        if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
            return f"GET {path}: the answer is not HTTP"
        status = int(words[1])
        return "" if status < _BAD_STATUS else f"GET {path}: status {status}"
    finally:
        writer.close()
