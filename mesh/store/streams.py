"""Leases and cancellations for a worker that wait to be sent on its stream.

Owns: the buffer between transactions and a stream. Leaves to others: filling it (turns), flow control (calls).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

from mesh.engines.sqlite.messages import Push
from mesh.tasks.contract import Lease


class WorkStream:
    """The stream of one session.

    Attributes:
        session: the session's name.
        idle: nothing is buffered. A worker that does not read its stream fast enough gets no further leases until it is
            idle again.
    """

    __slots__ = ("_cancel", "_ended", "_first", "_leases", "_taken", "_waiter", "session")

    def __init__(self, session: str, first: Push, taken: Callable[[WorkStream], None]) -> None:
        """`taken` is called when the stream has become idle."""
        self.session = session
        self._first: Push | None = first
        self._leases: list[Lease] = []
        self._cancel: list[tuple[str, int]] = []
        self._taken = taken
        self._ended = False
        self._waiter: asyncio.Future[None] | None = None

    @property
    def idle(self) -> bool:
        return self._first is None and not self._leases and not self._cancel

    def push(self, leases: Sequence[Lease]) -> None:
        """Send leases."""
        self._leases.extend(leases)
        self._wake()

    def cancel(self, id: str, attempt: int) -> None:
        """Send the cancellation of an attempt."""
        self._cancel.append((id, attempt))
        self._wake()

    def end(self) -> None:
        """End the stream after the buffered items."""
        self._ended = True
        self._wake()

    def drop(self) -> None:
        """End the stream at once, without the buffered items."""
        self._first = None
        self._leases.clear()
        self._cancel.clear()
        self.end()

    async def items(self) -> AsyncIterator[Push]:
        """The items to send, each with all that is buffered, until the end."""
        while True:
            if not self.idle:
                push = self._take()
                yield push
            elif self._ended:
                return
            else:
                self._waiter = asyncio.get_running_loop().create_future()
                try:
                    await self._waiter
                finally:
                    self._waiter = None

    def _take(self) -> Push:
        if self._first is not None:
            push, self._first = self._first, None
        else:
            push = Push(self._leases, self._cancel)
            self._leases, self._cancel = [], []
        if self.idle:
            self._taken(self)
        return push

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
