"""Clocks: real time on the event loop, or a manual clock for tests.

Owns: reading the time, and timers.
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
    """A scheduled callback."""

    def cancel(self) -> None:
        """Do not fire. Harmless when the timer has fired already."""


class Clock(Protocol):
    """The interface through which mesh reads time and sets timers: `Mesh(Shop, clock=ManualClock())` in a test."""

    def now(self) -> float:
        """Monotonic seconds; only differences are meaningful."""

    def wall(self) -> float:
        """Seconds since 1970, for people and for other hosts."""

    def boot(self) -> float:
        """Monotonic seconds that also count while the host is suspended; for what other hosts rely on, like leases."""

    def call_at(self, when: float, callback: Callable[..., object], *args: Any) -> Timer:
        """Run `callback(*args)` at the instant `when`, or as soon as possible after it."""

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds`."""


def _boot() -> float:
    """Monotonic seconds that also count while the host is suspended; see `Clock.boot`."""
    return time.clock_gettime(_BOOT)


# CLOCK_BOOTTIME is Linux only; elsewhere the monotonic clock is the closest substitute.
_BOOT: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class LoopClock:
    """Real time, the default of `mesh.connect()`; the running event loop fires the timers."""

    now = staticmethod(time.monotonic)
    wall = staticmethod(time.time)
    boot = staticmethod(_boot)

    def call_at(self, when: float, callback: Callable[..., object], *args: Any) -> Timer:
        """Run `callback(*args)` at the instant `when`; see `Clock.call_at`."""
        delay = when - time.monotonic()
        return asyncio.get_running_loop().call_later(delay if delay > 0 else 0, callback, *args)

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds`; see `Clock.sleep`."""
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
    """A clock that stands still until a test advances it.

    Example::

        async with Mesh(Shop, clock=ManualClock()) as m:
            job = await m.defer("shop.charge", "o1", delay="1h")
            await m.advance(3600)
    """

    def __init__(self, start: float = 1000.0) -> None:
        self._now = start
        self._set_by = 0.0
        self._order = itertools.count()
        self._timers: list[tuple[float, int, _HandTimer]] = []

    def now(self) -> float:
        """Monotonic seconds; see `Clock.now`."""
        return self._now

    def wall(self) -> float:
        """Seconds since 1970; see `Clock.wall`."""
        # A fixed date, so that the output of a test is the same every time.
        return 1_700_000_000.0 + self._now + self._set_by

    def boot(self) -> float:
        """Monotonic seconds; see `Clock.boot`."""
        return self._now

    def set_wall(self, by: float) -> None:
        """Move the wall clock by so many seconds (back when negative), as NTP does; `now` and `boot` do not change."""
        self._set_by += by

    def call_at(self, when: float, callback: Callable[..., object], *args: Any) -> Timer:
        """Run `callback(*args)` at the instant `when`; see `Clock.call_at`."""
        timer = _HandTimer(callback, args)
        heapq.heappush(self._timers, (when, next(self._order), timer))
        return timer

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds`; see `Clock.sleep`."""
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        timer = self.call_at(self._now + seconds, _wake, woken)
        try:
            await woken
        finally:
            timer.cancel()

    def turn(self, seconds: float) -> None:
        """Advance by `seconds` and fire due timers in order, without running the event loop: for code without one."""
        end = self._now + seconds
        while self._timers and self._timers[0][0] <= end:
            when, _, timer = heapq.heappop(self._timers)
            self._now = max(self._now, when)
            if not timer.cancelled:
                timer.callback(*timer.args)
        self._now = end

    async def advance(self, seconds: float) -> None:
        """Advance by `seconds`; after each timer the loop runs the tasks that the timer woke (see `settle`)."""
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
    """Run the loop for `turns` iterations. Twenty are enough for any chain of messages over the in-memory transport."""
    for _ in range(turns):
        await asyncio.sleep(0)
