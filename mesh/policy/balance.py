"""Load balancing: which of several instances gets the next call.

Owns: the power of two choices, the smoothed latency for it, rendezvous hashing of keys, and which keys a share takes.
Leaves to others: the candidates (discovery, calls), counting calls in flight (the caller), random numbers, time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from math import exp
from typing import Final, TypeVar

T = TypeVar("T")

#: Seconds after which an old peak counts half. Long enough that a slow instance is not tried again at every call, short
#: enough that a recovered one gets calls within about ten seconds: from ten times slower to as fast as the others takes
#: log2(10) = 3.3 half-lives, even without any calls to it.
HALF_LIFE_S: Final = 2.0

#: The assumed latency of an instance that has never answered, in seconds. Not 0: a new instance would then get all
#: calls until its first answer. A small call on one host takes a millisecond.
UNKNOWN_S: Final = 0.001

#: The least latency, in seconds. Below this, differences come from the resolution of the clock, and the calls in flight
#: should decide.
LEAST_S: Final = 0.000_05


def pick_two(rng_random: Callable[[], float], candidates: Sequence[T], cost: Callable[[T], float]) -> T:
    """The cheaper of two candidates drawn at random.

    Two choices spread load almost as well as comparing all candidates, cost the same for 3 candidates and for 3,000,
    and never send all callers to the candidate that was best a moment ago.

    Args:
        rng_random: draws a number 0 ≤ x < 1, for example `random.Random(7).random`; called once, and not at all
            for a single candidate.
        candidates: at least one.
        cost: the cost of choosing a candidate, lower is better; called at most twice. See `call_cost`.

    Raises:
        ValueError: there are no candidates.

    Source: Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001.
    """
    n = len(candidates)
    if n < 2:
        if n:
            return candidates[0]
        raise ValueError("pick_two: no candidates; check for candidates first")
    # One draw gives an ordered pair of different positions. As the order is random too, equal candidates share equally.
    others = n - 1
    drawn = int(rng_random() * (n * others))
    i = drawn // others
    j = drawn - i * others
    first = candidates[i]
    second = candidates[j + 1 if j >= i else j]
    return first if cost(first) <= cost(second) else second


def call_cost(in_flight: int, latency_s: float) -> float:
    """The estimated duration of a new call to an instance, as a cost for `pick_two`.

    Args:
        in_flight: calls that the instance has not answered yet.
        latency_s: `Ewma.value(now)`.
    """
    return (in_flight + 1) * latency_s


class Ewma:
    """A smoothed latency that rises at once and falls slowly.

    An answer slower than the smoothed value replaces it; faster ones lower it with the given half-life. Without any
    answers it decays too, so that a slow instance is tried again after some time.

    Args:
        half_life_s: seconds after which an observation counts half; more than 0.
        unknown_s: the value before the first observation, in seconds. The first observation replaces it.

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
            # `elapsed` is infinite at the first observation: nothing remains of `unknown_s`.
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

    Every process that knows the same ids gets the same order, in whatever order it learnt them. When an id is removed,
    only the keys that preferred it move, each to the next id in its order.

    Source: Thaler and Ravishankar, "Using Name-Based Mappings to Increase Hit Rates", 1998.
    """
    # surrogatepass: names need not be valid Unicode (they may come from a path), and every name needs a weight.
    begun = blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8)
    # Separates key and id: without it ("ab", "c") and ("a", "bc") would have the same weight.
    begun.update(b"\x00")
    weighed = []
    for name in ids:
        digest = begun.copy()
        digest.update(name.encode("utf-8", "surrogatepass"))
        weighed.append((digest.digest(), name))
    weighed.sort(reverse=True)
    return [name for _, name in weighed]


def place_of(salt: str, key: str) -> float:
    """The place of a key on a line from 0 to 1, the same in every process; evenly distributed over all keys.

    A share of x takes the keys below x: so a growing share keeps the keys that it has. Another salt gives another
    order.
    """
    digest = blake2b(f"{salt}\x00{key}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
