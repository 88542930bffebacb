"""Rate limits of many callers, in a table of bounded size.

Owns: one decision over all limits of a request, and which counts are forgotten when the table is full.
Leaves to others: the time, counting (policy.rate_window), which limits apply to which request (gateway.edge.rates).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Final, NamedTuple

from mesh.policy.rate_window import Window

#: For each new key: how many ended windows are forgotten of its limit, and of another one; and, in a full table, how
#: many keys are examined to find one that is below its limit.
ENDED: Final = 2
EXAMINED: Final = 8

#: Windows of each limit for the callers that do not fit into the table.
SHARED: Final = 256


class Quota(NamedTuple):
    """One limit.

    Attributes:
        name: unique among the limits: "orders.place 5/s".
        most: requests in `window_s` seconds.
    """

    name: str
    most: int
    window_s: float


class Standing(NamedTuple):
    """The state of one limit after a decision.

    Attributes:
        left: requests that would be admitted now.
        reset_s: seconds until more would be.
    """

    left: int
    reset_s: float


class Decision(NamedTuple):
    """The decision on one request.

    Attributes:
        refused: index of the limit that refuses it, the one that does so for the longest time; -1 when it is admitted.
        standings: of each limit, in order; None where it is not known.
    """

    refused: int
    standings: Sequence[Standing | None]


#: (name of the limit, caller).
Key = tuple[str, str]
#: A window for another process: its key, `most`, `window_s`, and (age in seconds, admissions) of its groups.
Parted = tuple[str, str, int, float, list[tuple[float, int]]]


def _standing(quota: Quota, window: Window, now: float) -> Standing:
    left = quota.most - window.used
    return Standing(left, window.next_s(now)) if left > 0 else Standing(0, window.free_s(quota.most, now))


class LimitWindows:
    """The windows of one limit."""

    __slots__ = ("shared", "windows")

    def __init__(self) -> None:
        #: By caller. The one that was admitted last is the last one, so those that end first are in front.
        self.windows: OrderedDict[str, Window] = OrderedDict()
        #: For callers that do not fit into the table.
        self.shared: dict[int, Window] = {}


class RateTable:
    """Windows by limit and caller: at most `most_keys`, and SHARED more for each limit.

    A window is forgotten when nothing in it counts. When the table is full, a limit that has less than its part of the
    table takes room from the limit that has the most; so a flood of callers of one limit does not change what other
    limits have counted. A limit that has its part replaces its oldest caller that is below the limit. A caller at its
    limit is not replaced then, so none is admitted again because others have filled the table. When only such callers
    are found, the new one gets one of SHARED windows, together with others: a flood from more addresses than the table
    has room for is limited, too. Replacing a caller below its limit is no loophole: to have one forgotten, an attacker
    sends a request from a new address for each caller in the table, and each of these addresses has a limit of its own
    anyway.

    Args:
        most_keys: 1 or more.

    Attributes:
        forgotten: windows that were replaced while they counted.
        shared: how often a caller got a shared window.
    """

    def __init__(self, most_keys: int) -> None:
        self.most_keys = most_keys
        self.forgotten = self.shared = 0
        self._count = 0
        #: By the name of the limit; the first one is tidied next.
        self._lanes: OrderedDict[str, LimitWindows] = OrderedDict()

    def __len__(self) -> int:
        return self._count

    def decide(self, caller: str, quotas: Sequence[Quota], now: float) -> Decision:
        """Admit a request if all its limits do; a refused request is counted by none.

        Args:
            caller: the caller that these limits count: "address 192.0.2.1".
        """
        if len(quotas) == 1 and (standing := self.admit(caller, quotas[0].name, now)) is not None:
            return Decision(-1, (Standing(*standing),))
        for name, _, _ in quotas:
            if self._get(name, caller) is None:
                self._make_room(name, now)
        windows = []
        refused, longest = -1, -1.0
        for index, (name, most, window_s) in enumerate(quotas):
            window = self._get(name, caller) or self._make(name, caller, most, window_s)
            window.expire(now)
            windows.append(window)
            if window.used >= most:
                wait_s = window.free_s(most, now)
                if wait_s > longest:
                    refused, longest = index, wait_s
        if refused < 0:
            for (name, _, _), window in zip(quotas, windows, strict=True):
                window.take(now)
                lane = self._lanes.get(name)
                if lane is not None and caller in lane.windows:
                    lane.windows.move_to_end(caller)
        return Decision(refused, tuple(map(_standing, quotas, windows, repeat(now))))

    def admit(self, caller: str, limit: str, now: float) -> tuple[int, float] | None:
        """Admit a request of a known caller with one limit: nearly all requests.

        Returns:
            What is left, and the seconds until more is, as in a Standing. None when the caller is not known or the
            limit is used up: then `decide` decides, and nothing has changed.
        """
        lane = self._lanes.get(limit)
        if lane is None or (window := lane.windows.get(caller)) is None:
            return None
        standing = window.admit(now)
        if standing is not None:
            lane.windows.move_to_end(caller)
        return standing

    # --- keys ---------------------------------------------------------------------------------------------

    def _get(self, name: str, caller: str) -> Window | None:
        lane = self._lanes.get(name)
        return lane.windows.get(caller) if lane is not None else None

    def _make(self, name: str, caller: str, most: int, window_s: float) -> Window:
        lane = self._lanes.get(name)
        if lane is None:
            lane = self._lanes[name] = LimitWindows()
        if self._count < self.most_keys:
            window = lane.windows[caller] = Window(most, window_s)
            self._count += 1
            return window
        self.shared += 1
        slot = hash(caller) % SHARED
        common = lane.shared.get(slot)
        if common is None:
            common = lane.shared[slot] = Window(most, window_s)
        return common

    def _make_room(self, name: str, now: float) -> None:
        """Make room for a new caller of a limit, if possible."""
        if not self._lanes:
            return
        self._forget_ended(name, now)
        first = next(iter(self._lanes))
        self._lanes.move_to_end(first)
        self._forget_ended(first, now)
        if self._count < self.most_keys:
            return
        own = self._lanes.get(name)
        if own is None or len(own.windows) < self.most_keys // len(self._lanes):
            largest = max(self._lanes, key=lambda each: len(self._lanes[each].windows))
            self._replace(largest, now, force=True)
        else:
            self._replace(name, now, force=False)

    def _forget_ended(self, name: str, now: float) -> None:
        for _ in range(ENDED):
            lane = self._lanes.get(name)
            caller, window = next(iter(lane.windows.items()), ("", None)) if lane is not None else ("", None)
            if window is None:
                return
            window.expire(now)
            if window.used:
                return
            self._remove(name, caller)

    def _replace(self, name: str, now: float, *, force: bool) -> None:
        """Forget the oldest caller that is below a limit; with `force`, one at the limit when there is no other."""
        windows = self._lanes[name].windows
        for _ in range(min(EXAMINED, len(windows))):
            caller, window = next(iter(windows.items()))
            window.expire(now)
            if window.used < window.most:
                self.forgotten += window.used > 0
                self._remove(name, caller)
                return
            # At its limit: examine others the next time.
            windows.move_to_end(caller)
        if force:
            self.forgotten += 1
            self._remove(name, next(iter(windows)))

    def _remove(self, name: str, caller: str) -> None:
        lane = self._lanes[name]
        del lane.windows[caller]
        self._count -= 1
        if not lane.windows:
            del self._lanes[name]

    # --- handing over to another process ------------------------------------------------------------------

    def held(self) -> list[Key]:
        """All keys that have a window of their own."""
        return [(name, caller) for name, lane in self._lanes.items() for caller in lane.windows]

    def part(self, keys: Iterable[Key], now: float) -> list[Parted]:
        """Remove windows, and return them in the form that `join` takes."""
        found = []
        for name, caller in keys:
            window = self._get(name, caller)
            if window is not None:
                self._remove(name, caller)
                window.expire(now)
                if window.used:
                    found.append((name, caller, window.most, window.window_s, window.ages(now)))
        return found

    def join(self, parted: Iterable[Parted], now: float) -> None:
        """Add the windows that another table has parted with."""
        for name, caller, most, window_s, ages in parted:
            window = self._get(name, caller)
            if window is None:
                self._make_room(name, now)
                window = self._make(name, caller, most, window_s)
            window.add(ages, now)
