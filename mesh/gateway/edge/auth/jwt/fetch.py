"""Fetches one small JSON document of an identity provider.

Owns: the limits of the fetch: time, size, redirects, encodings.
Leaves to others: which documents, and when (remote_keys).
"""

from __future__ import annotations

from typing import Final

import aiohttp

#: The longest fetch in seconds, from the connection to the last byte.
TIMEOUT_S: Final = 5.0
#: The largest document in bytes. Key sets of large providers have about 10 KiB.
MAX_BYTES: Final = 512 * 1024


class FetchFailed(Exception):
    """The document cannot be had; the message says why."""


def new_session() -> aiohttp.ClientSession:
    """A session for `fetch`: without cookies, proxies of the environment, and decompression."""
    return aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        headers={"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "mesh"},
    )


async def fetch(session: aiohttp.ClientSession, url: str) -> bytes:
    """The body of a URL.

    Raises:
        FetchFailed: there is none within the limits.
    """
    try:
        # A redirect would let the answer choose where the keys come from.
        async with session.get(url, allow_redirects=False) as answer:
            if answer.status != 200:
                where = answer.headers.get("Location", "")[:200]
                raise FetchFailed(f"answers {answer.status}" + (f" to {where}; name that URL" if where else ""))
            if "Content-Encoding" in answer.headers:
                raise FetchFailed("is compressed, although that was not asked for")
            data = bytearray()
            async for chunk in answer.content.iter_any():
                data += chunk
                if len(data) > MAX_BYTES:
                    raise FetchFailed(f"has more than {MAX_BYTES} bytes")
            return bytes(data)
    except TimeoutError:
        raise FetchFailed(f"does not answer within {TIMEOUT_S:g} s") from None
    except (aiohttp.ClientError, OSError, ValueError) as exc:
        raise FetchFailed(f"cannot be reached: {exc}"[:300]) from exc
