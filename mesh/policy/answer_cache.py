"""A cache of answers with a limited size: which are fresh, which are stale but still usable, which are forgotten.

Owns: ages, the size, and the order in which answers are forgotten.
Leaves to others: the keys, making answers (resilience.cache), the time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Final, Generic, NamedTuple, TypeVar

Value = TypeVar("Value")

#: What one answer costs besides its bytes.
OVERHEAD_BYTES: Final = 512


class Kept(NamedTuple, Generic[Value]):
    """An answer.

    Attributes:
        fresh: younger than `fresh_s`.
    """

    value: Value
    fresh: bool


class AnswerCache(Generic[Value]):
    """The last answers by key. The one that was not used for the longest time is forgotten first.

    Args:
        fresh_s: an answer is fresh for so long.
        stale_s: and usable for so much longer.
        most_bytes: of all answers together.
    """

    __slots__ = ("_fresh_s", "_kept", "_most", "_stale_s", "size")

    def __init__(self, fresh_s: float, stale_s: float, most_bytes: int) -> None:
        self._fresh_s = fresh_s
        self._stale_s = stale_s
        self._most = most_bytes
        self._kept: OrderedDict[Hashable, tuple[Value, int, float]] = OrderedDict()
        #: Bytes of all answers.
        self.size = 0

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Hashable, now: float) -> Kept[Value] | None:
        """The answer for a key; None when there is none that may be used."""
        found = self._kept.get(key)
        if found is None:
            return None
        value, _, at = found
        age_s = now - at
        if age_s >= self._fresh_s + self._stale_s:
            self.forget(key)
            return None
        self._kept.move_to_end(key)
        return Kept(value, age_s < self._fresh_s)

    def put(self, key: Hashable, value: Value, size: int, now: float) -> None:
        """Keep an answer of `size` bytes. One that is larger than an eighth of the cache is not kept."""
        self.forget(key)
        size += OVERHEAD_BYTES
        if size > self._most // 8:
            return
        self._kept[key] = (value, size, now)
        self.size += size
        while self.size > self._most:
            _, (_, dropped, _) = self._kept.popitem(last=False)
            self.size -= dropped

    def forget(self, key: Hashable) -> None:
        """Forget the answer for a key, if there is one."""
        found = self._kept.pop(key, None)
        if found is not None:
            self.size -= found[1]

    def clear(self) -> None:
        """Forget all answers."""
        self._kept.clear()
        self.size = 0
