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

#: For each new key: how many ended windows of each length are forgotten, and, in a full table, how many keys are
#: examined to find one that is below its limit.
ENDED: Final = 2
EXAMINED: Final = 8

#: Windows for all keys that do not fit into the table.
SHARED: Final = 1024


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


#: (length of the window, name of the limit, caller).
Key = tuple[float, str, str]
#: A window for another process: its key, `most`, and (age in seconds, admissions) of its groups.
Parted = tuple[float, str, str, int, list[tuple[float, int]]]
#: The windows of one length by (name of the limit, caller). The one that was admitted last is the last one, so those
#: that end first are in front.
Lane = OrderedDict[tuple[str, str], Window]


def _standing(quota: Quota, window: Window, now: float) -> Standing:
    left = quota.most - window.used
    return Standing(left, window.next_s(now)) if left > 0 else Standing(0, window.free_s(quota.most, now))


class RateTable:
    """Windows by limit and caller: at most `most_keys`, and SHARED more for the keys that do not fit.

    A window is forgotten when nothing in it counts. In a full table a new key replaces an old one that is below its
    limit, one of the length of window that has the most keys: a flood that a limit per second counts does not push out
    what a limit per day has counted. A key at its limit is never replaced, so no caller is admitted again because
    others have filled the table. When only such keys are found, the new key gets one of SHARED windows, together with
    other keys: a flood from more addresses than the table has keys is limited, too. Replacing a key below its limit is
    no loophole: to have one key forgotten, an attacker sends a request from a new address for each key in the table,
    and each of these addresses has a limit of its own anyway.

    Args:
        most_keys: 1 or more.

    Attributes:
        forgotten: keys that were replaced while they counted.
        shared: keys that got a shared window.
    """

    def __init__(self, most_keys: int) -> None:
        self.most_keys = most_keys
        self.forgotten = self.shared = 0
        self._count = 0
        self._lanes: dict[float, Lane] = {}
        self._shared: dict[int, Window] = {}

    def __len__(self) -> int:
        return self._count

    def decide(self, caller: str, quotas: Sequence[Quota], now: float) -> Decision:
        """Admit a request if all its limits do; a refused request is counted by none.

        Args:
            caller: the caller that these limits count: "address 192.0.2.1".
        """
        if len(quotas) == 1:
            # Nearly all requests: one limit, and a caller that is known.
            name, most, window_s = quotas[0]
            lane = self._lanes.get(window_s)
            window = lane.get((name, caller)) if lane is not None else None
            if lane is not None and window is not None:
                window.expire(now)
                if window.used < most:
                    window.take(now)
                    lane.move_to_end((name, caller))
                    return Decision(-1, (Standing(most - window.used, window.next_s(now)),))
        missing = sum(self._get(window_s, name, caller) is None for name, _, window_s in quotas)
        if missing:
            self._make_room(missing, now)
        windows = []
        refused, longest = -1, -1.0
        for index, (name, most, window_s) in enumerate(quotas):
            window = self._get(window_s, name, caller) or self._make(window_s, name, caller, most, now)
            window.expire(now)
            windows.append(window)
            if window.used >= most:
                wait_s = window.free_s(most, now)
                if wait_s > longest:
                    refused, longest = index, wait_s
        if refused < 0:
            for (name, _, window_s), window in zip(quotas, windows, strict=True):
                window.take(now)
                lane = self._lanes.get(window_s)
                if lane is not None and (name, caller) in lane:
                    lane.move_to_end((name, caller))
        return Decision(refused, tuple(map(_standing, quotas, windows, repeat(now))))

    # --- keys ---------------------------------------------------------------------------------------------

    def _get(self, window_s: float, name: str, caller: str) -> Window | None:
        lane = self._lanes.get(window_s)
        return lane.get((name, caller)) if lane is not None else None

    def _make(self, window_s: float, name: str, caller: str, most: int, now: float) -> Window:
        slot = hash((name, caller)) % SHARED
        common = self._shared.get(slot) if self._shared else None
        if self._count >= self.most_keys:
            self.shared += 1
            if common is None:
                common = self._shared[slot] = Window(most, window_s)
            # Limits with different windows may meet here; counting for too long is the safe side.
            common.window_s = max(common.window_s, window_s)
            return common
        window = self._lanes.setdefault(window_s, OrderedDict())[name, caller] = Window(most, window_s)
        self._count += 1
        if common is not None:
            # This key may have used up its limit in the shared window.
            window.add(common.ages(now), now)
        return window

    def _make_room(self, wanted: int, now: float) -> None:
        """Forget old keys in which nothing counts; when the table is full, keys below their limits, too."""
        for window_s, lane in list(self._lanes.items()):
            self._forget_ended(window_s, lane, now)
        need = self._count + wanted - self.most_keys
        if need <= 0:
            return
        window_s, lane = max(self._lanes.items(), key=lambda item: len(item[1]))
        for _ in range(min(len(lane), EXAMINED * wanted)):
            key, window = next(iter(lane.items()))
            window.expire(now)
            if window.used < window.most:
                self._remove(window_s, lane, key)
                self.forgotten += window.used > 0
                need -= 1
                if not need:
                    return
            else:
                # At its limit: examine others the next time.
                lane.move_to_end(key)

    def _forget_ended(self, window_s: float, lane: Lane, now: float) -> None:
        for _ in range(min(len(lane), ENDED)):
            key, window = next(iter(lane.items()))
            window.expire(now)
            if window.used:
                return
            self._remove(window_s, lane, key)

    def _remove(self, window_s: float, lane: Lane, key: tuple[str, str]) -> None:
        del lane[key]
        self._count -= 1
        if not lane:
            del self._lanes[window_s]

    # --- handing over to another process ------------------------------------------------------------------

    def held(self) -> list[Key]:
        """All keys that have a window of their own."""
        return [(window_s, *key) for window_s, lane in self._lanes.items() for key in lane]

    def part(self, keys: Iterable[Key], now: float) -> list[Parted]:
        """Remove windows, and return them in the form that `join` takes."""
        found = []
        for window_s, name, caller in keys:
            window = self._get(window_s, name, caller)
            if window is not None:
                self._remove(window_s, self._lanes[window_s], (name, caller))
                window.expire(now)
                if window.used:
                    found.append((window_s, name, caller, window.most, window.ages(now)))
        return found

    def join(self, parted: Iterable[Parted], now: float) -> None:
        """Add the windows that another table has parted with."""
        for window_s, name, caller, most, ages in parted:
            window = self._get(window_s, name, caller)
            if window is None:
                self._make_room(1, now)
                window = self._make(window_s, name, caller, most, now)
            window.add(ages, now)
