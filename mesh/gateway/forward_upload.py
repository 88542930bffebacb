"""The body of a forwarded request.

Owns: handing its chunks to aiohttp's client, and which time limit runs meanwhile.
Leaves to others: reading it, and its own limits (body_stream), sending the request (forwarding).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from mesh.errors import MeshError
from mesh.gateway.body_stream import BodyStream


class Upload:
    """The body of a forwarded request, as aiohttp's client takes it.

    Attributes:
        error: why reading it failed; aiohttp does not tell.
    """

    def __init__(self, body: BodyStream) -> None:
        self._body = body
        self.error: MeshError | None = None
        self._limit: asyncio.Timeout | None = None
        self._limit_s = 0.0

    @property
    def at_end(self) -> bool:
        """Whether the whole body has been read from the client."""
        return self._body.at_end

    def watch(self, limit: asyncio.Timeout | None, limit_s: float) -> None:
        """Move a time limit of `limit_s` with every chunk: the time for the answer begins after the last one."""
        self._limit, self._limit_s = limit, limit_s

    def _move(self, *, waits: bool) -> None:
        if self._limit is not None and not self._limit.expired():
            # While the gateway waits for the client, the body's own limits apply.
            self._limit.reschedule(None if waits else asyncio.get_running_loop().time() + self._limit_s)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The chunks, to be iterated once.

        Raises:
            MeshError: the body cannot be read; also in `error`.
        """
        try:
            while True:
                self._move(waits=True)
                chunk = await anext(self._body, b"")
                self._move(waits=False)
                if not chunk:
                    return
                yield chunk
        except MeshError as exc:
            self.error = exc
            raise
