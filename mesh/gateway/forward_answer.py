"""The answer of a server that a request was forwarded to, on its way to the client.

Owns: its header fields and its body, in one piece or as it comes, and how it ends when one side fails.
Leaves to others: the request (forwarding), which fields pass (forward_headers), framing and back-pressure (transfer).
"""

from __future__ import annotations

import asyncio
from typing import Final

import aiohttp
from aiohttp import hdrs

from mesh.config.edge_proxy import ProxySettings
from mesh.gateway.forward_errors import BadGateway, UpstreamTimeout
from mesh.gateway.forward_headers import for_client, lines_of, own_names, rewrite_cookie, rewrite_location
from mesh.gateway.forward_upload import Upload
from mesh.gateway.front import Front
from mesh.gateway.media import SSE_TYPE
from mesh.gateway.reply import HeadOnly, Reply
from mesh.gateway.request import TIMEOUT, Request
from mesh.gateway.transfer import Transfer, Written

#: Answers up to this size that have arrived with their heads are sent in one piece.
_WHOLE_BYTES: Final = 64 * 1024


class Answers:
    """Sends the answers of one list of servers to clients.

    Args:
        prefix: what was removed from the paths of requests; "" when nothing was.
    """

    def __init__(self, front: Front, settings: ProxySettings, prefix: str) -> None:
        self._front = front
        self._settings = settings
        self._prefix = prefix

    def lines(self, request: Request, response: aiohttp.ClientResponse) -> bytes:
        """The header lines of an answer for the client."""
        fields = for_client(response.raw_headers, own_names(request.raw.lines))
        if not self._settings.rewrite:
            return lines_of(fields)
        base = str(response.url.origin())
        rewritten = []
        for name, value in fields:
            lower = name.lower()
            if lower in (b"location", b"content-location"):
                value = rewrite_location(value, base, self._prefix)
            elif lower == b"set-cookie":
                value = rewrite_cookie(value, self._prefix)
            rewritten.append((name, value))
        return lines_of(rewritten)

    async def relay(self, request: Request, response: aiohttp.ClientResponse, upload: Upload | None) -> Reply | Written:
        """Send an answer to the client.

        Args:
            upload: the body of the request, which may not have ended.
        """
        raw = request.raw
        status = response.status
        lines = self.lines(request, response)
        content = response.content
        keep_alive = upload is None or upload.at_end
        if raw.method == "HEAD" or status in (204, 304):
            head = HeadOnly(length_of(response) if raw.method == "HEAD" else None, "", status, lines)
            head.keep_alive = keep_alive
            return head
        if content.is_eof() and content.total_bytes <= _WHOLE_BYTES:
            reply = Reply(content.read_nowait(-1), "", status, lines)
            reply.keep_alive = keep_alive
            return reply
        transfer = Transfer(
            raw,
            status,
            lines,
            length_of(response),
            keep_alive=keep_alive and self._front.keeps(raw),
            stall_s=self._settings.idle_timeout_s,
        )
        # A client that names a time for the answer means all of it.
        limit = asyncio.timeout(request.remaining_s if TIMEOUT in raw.headers else None)
        address = str(response.url.origin())
        streams = self._front.connections.streams
        leaving = _Leaving() if response.content_type == SSE_TYPE else None
        if leaving is not None:
            streams.add(leaving)
        try:
            async with limit:
                while True:
                    chunk = content.read_nowait(-1)
                    if not chunk:
                        if content.at_eof():
                            break
                        # The head goes out at once: the first piece may take long, as with events.
                        transfer.start()
                        chunk = await content.readany()
                    if chunk:
                        await transfer.write(chunk)
            transfer.end()
        except TimeoutError:
            request.failure = UpstreamTimeout(f"{address}: the answer did not end in time")
            transfer.fail()
        except (aiohttp.ClientError, ValueError) as exc:
            if upload is not None and upload.error is not None:
                request.failure = upload.error
            else:
                request.failure = BadGateway(f"{address}: the answer broke off: {exc}")
            transfer.fail()
        except ConnectionError:
            # The client disconnected, or does not read: no error can be sent.
            transfer.fail()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if leaving is None or not leaving.left or task is None or task.uncancel():
                raise
            # Its client reconnects, to another gateway.
            transfer.end()
        finally:
            if leaving is not None:
                streams.discard(leaving)
        return transfer


class _Leaving:
    """Ends forwarded Server-Sent Events when the gateway drains.

    Attributes:
        left: it has cancelled the task that forwards them.
    """

    def __init__(self) -> None:
        self.left = False
        self._task = asyncio.current_task()

    def leave(self) -> None:
        """End the answer."""
        if not self.left and self._task is not None:
            self.left = True
            self._task.cancel()


def length_of(response: aiohttp.ClientResponse) -> int | None:
    """The Content-Length of an answer that has one, and no other framing."""
    told = response.headers.get(hdrs.CONTENT_LENGTH, "")
    if hdrs.TRANSFER_ENCODING in response.headers or not told.isdecimal() or len(told) > 18:
        return None
    return int(told)
