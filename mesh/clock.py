"""Where time comes from: the loop's, or one turned by hand.

Owns: reading time and being woken at an instant.
Leaves to others: what a deadline means (protocol.deadline), and when to give up (calls).

Instants are monotonic seconds as floats and end in `_at`; spans end in `_s`.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable
from typing import Any, Protocol


class Timer(Protocol):
    """A wake-up that has been asked for."""

    def cancel(self) -> None:
        """Forget it; harmless when it has fired."""


class Clock(Protocol):
    """What mesh asks of time."""

    def now(self) -> float:
        """Monotonic seconds; only differences mean anything."""

    def wall(self) -> float:
        """Seconds since 1970, for people and for other hosts."""

    def boot(self) -> float:
        """Monotonic seconds that also count while the host sleeps; for what other hosts rely on, like a lease."""

    def call_at(self, when: float, callback: Callable[..., object], *args: Any) -> Timer:
        """Run `callback(*args)` at the instant `when`, or as soon as possible after it."""

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds`."""


def _boot() -> float:
    return time.clock_gettime(_BOOT)


# Linux; elsewhere the monotonic clock is the nearest that there is.
_BOOT: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class LoopClock:
    """Real time, woken by the running event loop."""

    now = staticmethod(time.monotonic)
    wall = staticmethod(time.time)
    boot = staticmethod(_boot)

    def call_at(self, when: float, callback: Callable[..., object], *args: Any) -> Timer:
        delay = when - time.monotonic()
        return asyncio.get_running_loop().call_later(delay if delay > 0 else 0, callback, *args)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class _HandTimer:
    __slots__ = ("args", "callback", "cancelled")

    def __init__(self, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        self.callback = callback
        self.args = args
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class ManualClock:
    """Time that stands still until a test turns it."""

    def __init__(self, start: float = 1000.0) -> None:
        self._now = start
        self._set_by = 0.0
        self._order = itertools.count()
        self._timers: list[tuple[float, int, _HandTimer]] = []

    def now(self) -> float:
        return self._now

    def wall(self) -> float:
        # A fixed day, so that whatever a test prints is the same every time.
        return 1_700_000_000.0 + self._now + self._set_by

    def boot(self) -> float:
        return self._now

    def set_wall(self, by: float) -> None:
        """Set the wall clock forward, or back (below 0), as an administrator or NTP does; time itself stands still."""
        self._set_by += by

    def call_at(self, when: float, callback: Callable[..., object], *args: Any) -> Timer:
        timer = _HandTimer(callback, args)
        heapq.heappush(self._timers, (when, next(self._order), timer))
        return timer

    async def sleep(self, seconds: float) -> None:
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        timer = self.call_at(self._now + seconds, _wake, woken)
        try:
            await woken
        finally:
            timer.cancel()

    def turn(self, seconds: float) -> None:
        """Move on by `seconds`, firing what is due in order. Starts no task step: for code without a loop."""
        end = self._now + seconds
        while self._timers and self._timers[0][0] <= end:
            when, _, timer = heapq.heappop(self._timers)
            self._now = max(self._now, when)
            if not timer.cancelled:
                timer.callback(*timer.args)
        self._now = end

    async def advance(self, seconds: float) -> None:
        """Move on by `seconds`; after each timer the loop runs until what it woke has had its turns."""
        end = self._now + seconds
        await settle()
        while self._timers and self._timers[0][0] <= end:
            when, _, timer = heapq.heappop(self._timers)
            self._now = max(self._now, when)
            if not timer.cancelled:
                timer.callback(*timer.args)
                await settle()
        self._now = end
        await settle()


def _wake(sleeper: asyncio.Future[None]) -> None:
    if not sleeper.done():
        sleeper.set_result(None)


async def settle(turns: int = 20) -> None:
    """Give every task that can run its turns. In memory, twenty loop turns carry any chain of messages to its end."""
    for _ in range(turns):
        await asyncio.sleep(0)
