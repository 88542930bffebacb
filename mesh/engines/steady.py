"""An engine's own time: seconds since 1970, unaffected by changes of the wall clock.

Owns: reading it, continuing it exactly after a restart on the same boot, and its difference from the wall clock.
Leaves to others: storing `mark` (engines), what is measured in this time (docs/durable.md, "Time").

It is CLOCK_BOOTTIME, which also counts while the host sleeps, plus an offset that is fixed when the engine first starts
on a boot of its host. So leases, delays, retries, `ttl` and `keep` have their exact lengths. The time between two boots
is known from the wall clock only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mesh.clock import Clock, Timer


class SteadyClock:
    """A clock with a `wall` that is not affected by changes of the wall clock.

    Attributes:
        goes_on: whether this clock continues the time of `mark` exactly.
    """

    def __init__(self, clock: Clock, mark: str = "", boot_id: str = "") -> None:
        """Args:
        mark: the stored mark of the last process; "" for none.
        boot_id: identifies this boot of this host; "" where the system does not provide it.
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
        """To be stored, so that the next process on this boot continues the same time."""
        return f"{self._boot_id} {self._offset!r}"

    def wall(self) -> float:
        """Seconds since 1970, by this clock."""
        return self._boot() + self._offset

    def ahead(self) -> float:
        """How far the wall clock is ahead of this one: by how much it was set since this clock started."""
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
