"""An engine's own time: seconds since 1970 that no setting of the wall clock moves.

Owns: reading it, going on exactly where it stood after a restart on the same boot, and what it differs from the wall
clock by. Leaves to others: keeping `mark` (engines), what is measured in it (docs/durable.md, "Time").

It is CLOCK_BOOTTIME, which also counts while the host sleeps, plus an offset that is fixed when the engine first starts
on a boot of its host. So leases, delays, retries, `ttl` and `keep` last as long as they say. How much time has passed
between two boots is known from the wall clock alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mesh.clock import Clock, Timer


class SteadyClock:
    """A clock whose `wall` is steady.

    Attributes:
        goes_on: it is known exactly how much time has passed since `mark` was written.
    """

    def __init__(self, clock: Clock, mark: str = "", boot_id: str = "") -> None:
        """Args:
        mark: of the last process that kept this time; "" for none.
        boot_id: of this boot of this host; "" where the system does not tell.
        """
        self._clock = clock
        self._boot = clock.boot
        self._boot_id = boot_id
        self.now = clock.now
        before, _, offset = mark.rpartition(" ")
        self.goes_on = bool(boot_id) and before == boot_id
        self._offset = float(offset) if self.goes_on else clock.wall() - clock.boot()

    @property
    def mark(self) -> str:
        """To be kept, so that the next process on this boot goes on with the same time."""
        return f"{self._boot_id} {self._offset!r}"

    def wall(self) -> float:
        """Seconds since 1970, by this clock."""
        return self._boot() + self._offset

    def ahead(self) -> float:
        """How far the wall clock is ahead of this one: what it was set by since this one began."""
        return self._clock.wall() - self.wall()

    def boot(self) -> float:
        """See Clock."""
        return self._boot()

    def call_at(self, when: float, callback: Callable[..., object], *args: Any) -> Timer:
        """See Clock."""
        return self._clock.call_at(when, callback, *args)

    async def sleep(self, seconds: float) -> None:
        """See Clock."""
        await self._clock.sleep(seconds)
