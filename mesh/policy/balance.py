"""Which of several instances gets the next call.

Owns: the power of two choices, the smoothed latency it judges by, and the order that a key prefers.
Leaves to others: who may be chosen at all (discovery, calls), what is in flight (the caller counts), drawing
random numbers, telling the time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from math import exp
from typing import Final, TypeVar

T = TypeVar("T")

#: Seconds after which an old peak counts half. Long enough that a slow instance is not asked again at every turn,
#: short enough that one which has recovered is back at work within some ten seconds: from ten times slower to as
#: fast as the rest takes log2(10) = 3.3 half-lives even if nobody calls it meanwhile.
HALF_LIFE_S: Final = 2.0

#: What an instance that has never answered is taken to need, in seconds. Not 0: every newcomer would then be sent
#: everything until its first answer. A millisecond is what a small call on one host takes.
UNKNOWN_S: Final = 0.001

#: No latency is taken to be shorter, in seconds. Below this, what tells two instances apart is the clock's grain, and
#: what is in flight should decide.
LEAST_S: Final = 0.000_05


def pick_two(rng_random: Callable[[], float], candidates: Sequence[T], cost: Callable[[T], float]) -> T:
    """The cheaper of two candidates drawn at random.

    Two choices spread load almost as well as looking at all, cost the same for 3 candidates and for 3,000, and never
    send the whole herd to the one that looked best a moment ago.

    Args:
        rng_random: draws a number 0 ≤ x < 1, for example `random.Random(7).random`; asked once, and not at all
            for a single candidate.
        candidates: at least one.
        cost: what choosing it costs, lower is better; asked twice at most. See `call_cost`.

    Raises:
        ValueError: there are no candidates.

    Source: Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001.
    """
    n = len(candidates)
    if n < 2:
        if n:
            return candidates[0]
        raise ValueError("pick_two: no candidates; look whether there are any before choosing")
    # One draw gives an ordered pair of different places. The order being random too, equals share equally.
    others = n - 1
    drawn = int(rng_random() * (n * others))
    i = drawn // others
    j = drawn - i * others
    first = candidates[i]
    second = candidates[j + 1 if j >= i else j]
    return first if cost(first) <= cost(second) else second


def call_cost(in_flight: int, latency_s: float) -> float:
    """How long a call would take that is given to this instance now, as a cost for `pick_two`.

    Args:
        in_flight: calls it has not answered yet.
        latency_s: `Ewma.value(now)`.
    """
    return (in_flight + 1) * latency_s


class Ewma:
    """A latency that believes bad news at once and good news slowly.

    A slower answer than the smoothed value replaces it; faster ones draw it down with the given half-life. Without
    any answers it fades, too: an instance that was slow is asked again some time, instead of never.

    Args:
        half_life_s: seconds after which what was observed counts half; more than 0.
        unknown_s: the value before anything was observed, in seconds. It is forgotten at the first observation.

    Raises:
        ValueError: `half_life_s` is not above 0.

    Source: Finagle's PeakEwma.
    """

    __slots__ = ("_at", "_rate", "_value", "observed")

    def __init__(self, half_life_s: float = HALF_LIFE_S, *, unknown_s: float = UNKNOWN_S) -> None:
        if not 0 < half_life_s < math.inf:
            raise ValueError(f"half_life_s: {half_life_s!r} is not a number of seconds above 0")
        self._rate = -math.log(2) / half_life_s
        self._value = unknown_s
        self._at = -math.inf
        #: Whether anything has been observed yet.
        self.observed = False

    def observe(self, seconds: float, now: float) -> None:
        """An answer took `seconds`; it came at the instant `now`."""
        value = self._value
        if seconds < value:
            elapsed = now - self._at
            # `elapsed` is infinite at the first observation: nothing remains of the guess.
            if elapsed > 0:
                self._value = seconds + (value - seconds) * exp(self._rate * elapsed)
        else:
            self._value = seconds
        self._at = now
        self.observed = True

    def value(self, now: float) -> float:
        """The smoothed latency in seconds at the instant `now`, at least `LEAST_S`."""
        if not self.observed:
            return self._value
        elapsed = now - self._at
        faded = self._value * exp(self._rate * elapsed) if elapsed > 0 else self._value
        return faded if faded > LEAST_S else LEAST_S


def rendezvous(key: str, ids: Iterable[str]) -> list[str]:
    """All `ids`, the one that `key` prefers first (highest random weight).

    Every process that knows the same ids finds the same order, whatever order it learnt them in. When an id goes, only
    the keys that preferred it move, each to its next in order; the others stay where they are.

    Source: Thaler and Ravishankar, "Using Name-Based Mappings to Increase Hit Rates", 1998.
    """
    # Names need not be valid Unicode (they may come from a path), and every one of them must have a place.
    begun = blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8)
    # Ends the key: without it ("ab", "c") and ("a", "bc") would share a weight.
    begun.update(b"\x00")
    weighed = []
    for name in ids:
        digest = begun.copy()
        digest.update(name.encode("utf-8", "surrogatepass"))
        weighed.append((digest.digest(), name))
    weighed.sort(reverse=True)
    return [name for _, name in weighed]
