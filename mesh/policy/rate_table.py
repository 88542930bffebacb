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

#: How many old keys are examined for a new key: to forget ended windows, and to find room in a full table.
EXAMINED: Final = 2
EXAMINED_FULL: Final = 8

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


#: (name of the limit, caller).
Key = tuple[str, str]
#: A window for another process: name, caller, `most`, `window_s`, and (age in seconds, admissions) of its groups.
Parted = tuple[str, str, int, float, list[tuple[float, int]]]


def _standing(quota: Quota, window: Window, now: float) -> Standing:
    left = quota.most - window.used
    return Standing(left, window.next_s(now)) if left > 0 else Standing(0, window.free_s(quota.most, now))


class RateTable:
    """Windows by limit and caller: at most `most_keys`, and SHARED more for the keys that do not fit.

    A window is forgotten when nothing in it counts. In a full table a new key replaces an old one that is below its
    limit. A key at its limit is never replaced, so no caller is admitted again because others have filled the table.
    When only keys at their limits are found, the new key gets one of SHARED windows, together with other keys: a flood
    from more addresses than the table has keys is limited, too. Replacing a key below its limit is no loophole: to have
    one key forgotten, an attacker sends a request from a new address for each key in the table, and each of these
    addresses has a limit of its own anyway.

    Args:
        most_keys: 1 or more.

    Attributes:
        forgotten: keys that were replaced while they counted.
        shared: keys that got a shared window.
    """

    def __init__(self, most_keys: int) -> None:
        self.most_keys = most_keys
        self.forgotten = self.shared = 0
        # The key that was admitted last is the last one.
        self._windows: OrderedDict[Key, Window] = OrderedDict()
        self._shared: dict[int, Window] = {}

    def __len__(self) -> int:
        return len(self._windows)

    def decide(self, caller: str, quotas: Sequence[Quota], now: float) -> Decision:
        """Admit a request if all its limits do; a refused request is counted by none.

        Args:
            caller: the caller that these limits count: "address 192.0.2.1".
        """
        held = self._windows
        if len(quotas) == 1:
            # Nearly all requests: one limit, and a caller that is known.
            name, most, window_s = quotas[0]
            window = held.get((name, caller))
            if window is not None:
                window.expire(now)
                if window.used < most:
                    window.take(now)
                    held.move_to_end((name, caller))
                    return Decision(-1, (Standing(most - window.used, window.next_s(now)),))
        missing = sum((quota.name, caller) not in held for quota in quotas)
        if missing:
            self._make_room(missing, now)
        windows = []
        refused, longest = -1, -1.0
        for index, (name, most, window_s) in enumerate(quotas):
            window = held.get((name, caller)) or self._make((name, caller), most, window_s, now)
            window.expire(now)
            windows.append(window)
            if window.used >= most:
                wait_s = window.free_s(most, now)
                if wait_s > longest:
                    refused, longest = index, wait_s
        if refused < 0:
            for quota, window in zip(quotas, windows, strict=True):
                window.take(now)
                if (quota.name, caller) in held:
                    held.move_to_end((quota.name, caller))
        return Decision(refused, tuple(map(_standing, quotas, windows, repeat(now))))

    # --- keys ---------------------------------------------------------------------------------------------

    def _make(self, key: Key, most: int, window_s: float, now: float) -> Window:
        slot = hash(key) % SHARED
        common = self._shared.get(slot) if self._shared else None
        if len(self._windows) >= self.most_keys:
            self.shared += 1
            if common is None:
                common = self._shared[slot] = Window(most, window_s)
            # Limits with different windows may meet here; counting for too long is the safe side.
            common.window_s = max(common.window_s, window_s)
            return common
        window = self._windows[key] = Window(most, window_s)
        if common is not None:
            # This key may have used up its limit in the shared window.
            window.add(common.ages(now), now)
        return window

    def _make_room(self, wanted: int, now: float) -> None:
        """Forget old keys in which nothing counts; when the table is full, keys below their limits, too."""
        held = self._windows
        need = len(held) + wanted - self.most_keys
        for _ in range(min(len(held), EXAMINED if need <= 0 else EXAMINED_FULL * wanted)):
            key, window = next(iter(held.items()))
            window.expire(now)
            if not window.used:
                del held[key]
                need -= 1
            elif need <= 0:
                return
            elif window.used < window.most:
                del held[key]
                self.forgotten += 1
                need -= 1
            else:
                # At its limit: examine others the next time.
                held.move_to_end(key)

    # --- handing over to another process ------------------------------------------------------------------

    def keys(self) -> list[Key]:
        """All keys that have a window of their own."""
        return list(self._windows)

    def part(self, keys: Iterable[Key], now: float) -> list[Parted]:
        """Remove windows, and return them in the form that `join` takes."""
        found = []
        for key in keys:
            window = self._windows.pop(key, None)
            if window is not None:
                window.expire(now)
                if window.used:
                    found.append((*key, window.most, window.window_s, window.ages(now)))
        return found

    def join(self, parted: Iterable[Parted], now: float) -> None:
        """Add the windows that another table has parted with."""
        for name, caller, most, window_s, ages in parted:
            window = self._windows.get((name, caller))
            if window is None:
                self._make_room(1, now)
                window = self._make((name, caller), most, window_s, now)
            window.add(ages, now)
