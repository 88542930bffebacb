"""Batching: the items of one loop tick are sent as one request.

Owns: collecting items, the size of a request, and giving each caller its own answer or error.
Leaves to others: whether to send a batch in halves (pace), the request itself (an engine's `defer` or `append`).

A hundred handlers that each defer a task in the same tick cost one commit, one message and one asyncio task: most of
the speed of deferring comes from that.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from time import perf_counter
from typing import Final, Generic, TypeVar

from mesh.errors import BadRequest, LeaseLost, Unavailable
from mesh.tasks.pace import Pace

Item = TypeVar("Item")
Answer = TypeVar("Answer")

#: A request is sent early at so many items: the rest of the tick is encoded while the engine works.
MOST_ITEMS: Final = 512
#: Or at so many bytes: an engine handles that in a few milliseconds, so later requests do not wait long.
MOST_BYTES: Final = 256 * 1024
#: While requests are joined for a round (see pace), none waits longer than this for the previous one.
JOIN_S: Final = 0.02

#: Errors that reject a whole request because of one item: then each item is sent alone.
ONE_IS_WRONG: Final = (BadRequest, LeaseLost)


class Gathering(Generic[Item, Answer]):
    """One kind of request. One event loop owns it."""

    def __init__(self, send: Callable[[list[Item]], Awaitable[Sequence[Answer]]], *, halves: bool = False) -> None:
        """Args:
        send: sends a batch; its awaitable has the answers in the order of the items. A future is the fastest: a
            coroutine becomes a task.
        halves: whether batches may be sent in two halves; worth it when most callers send again at once (see pace).
        """
        self._send = send
        self._items: list[Item] = []
        self._told: list[Callable[[Answer | BaseException], None]] = []
        self._bytes = 0
        # Running requests with their items; and the number of all those items.
        self._sending: dict[asyncio.Future[Sequence[Answer]], tuple[list[Item], list[Callable[..., None]]]] = {}
        self._asked = 0
        self._pace = Pace() if halves else None
        self._loop = asyncio.get_running_loop()
        # The context of one caller (a deadline, a trace, an atomic block) must not apply to the others.
        self._context = Context()
        self._closed = False

    def __len__(self) -> int:
        """The number of requests that are running or wait to be sent."""
        return len(self._sending) + bool(self._items)

    def add(self, item: Item, size: int, told: Callable[[Answer | BaseException], None]) -> None:
        """Add an item to the batch; `told` is called once, with the answer or the error, and must not raise."""
        if self._closed:
            told(Unavailable("this node is closed"))
            return
        if not self._items:
            self._loop.call_soon(self._tick, context=self._context)
        self._items.append(item)
        self._told.append(told)
        self._bytes += size
        if len(self._items) >= MOST_ITEMS or self._bytes >= MOST_BYTES:
            self._context.run(self._flush)

    def _tick(self) -> None:
        """Send the items of this tick, or only the first half when there are many."""
        count = len(self._items)
        pace = self._pace
        if pace is None or not count:
            self._flush()
            return
        share = pace.share(count, self._asked, perf_counter())
        if pace.joining:
            self._loop.call_later(JOIN_S, self._stop_joining, pace, context=self._context)
        elif share < count:
            items, self._items = self._items[:share], self._items[share:]
            told, self._told = self._told[:share], self._told[share:]
            self._send_off(items, told)
            # One loop step after the first half; otherwise the halves would be joined again.
            self._loop.call_soon(self._flush, context=self._context)
        else:
            self._flush()

    def _stop_joining(self, pace: Pace) -> None:
        """Stop waiting for the previous request: it is slow, the engine may be unreachable."""
        if pace.joining:
            pace.joining = False
            self._flush()

    def _flush(self) -> None:
        """Send everything."""
        if not self._items:
            return
        items, self._items = self._items, []
        told, self._told = self._told, []
        self._bytes = 0
        self._send_off(items, told)

    def _send_off(self, items: list[Item], told: list[Callable[[Answer | BaseException], None]]) -> None:
        self._asked += len(items)
        # A future needs no task, which would cost two more ticks of the loop.
        request: asyncio.Future[Sequence[Answer]]
        try:
            request = asyncio.ensure_future(self._send(items))
        except Exception as exc:
            request = self._loop.create_future()
            request.set_exception(exc)
        self._sending[request] = items, told
        request.add_done_callback(self._answered, context=self._context)

    def _answered(self, request: asyncio.Future[Sequence[Answer]]) -> None:
        items, told = self._sending.pop(request)
        self._asked -= len(items)
        error: BaseException | None
        if request.cancelled():
            error = Unavailable("this node was closed before an answer came")
        else:
            error = request.exception()
        if error is None:
            for tell, answer in zip(told, request.result(), strict=True):
                tell(answer)
        elif isinstance(error, ONE_IS_WRONG) and len(items) > 1 and not self._closed:
            # One item caused the rejection of all: send each alone, so that the others succeed.
            for item, tell in zip(items, told, strict=True):
                self._send_off([item], [tell])
        else:
            for tell in told:
                # A copy for each caller: one exception raised in many places would collect all their tracebacks.
                tell(copy.copy(error) if len(told) > 1 else error)
        if not self._asked and self._pace is not None and self._pace.joining:
            # After the callers that were just answered, so that their next items are in the batch.
            self._loop.call_soon(self._tick, context=self._context)

    async def close(self) -> None:
        """End running requests with errors; items that are added later fail at once."""
        self._closed = True
        self._context.run(self._flush)
        sending = list(self._sending)
        for request in sending:
            request.cancel()
        await asyncio.gather(*sending, return_exceptions=True)
