"""Judges a new release by the calls that it and the old one answered in the same period.

Owns: what counts as worse, the verdict, and the steps of the share.
Leaves to others: the statistics of one comparison (sequential), counting calls, starting and stopping processes.

======================  ==============================================================================================
what is found           when
======================  ==============================================================================================
more errors             the failure rate of the new release exceeds that of the old one by more than `tolerance`, of all
                        calls together or of one method
slower                  for one bound of the histogram, the share of calls that take longer exceeds that of the old
                        release by more than `slower`
harmless                the failure rate exceeds that of the old release by less than `margin`
======================  ==============================================================================================

Each is found with the confidence that the rules name, whenever it is looked at; "harmless" anew at each share. With
equal releases, a wrong verdict "more errors" or "slower" has a probability of at most 1 - confidence in the whole time
of observation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from itertools import pairwise
from typing import Final, NamedTuple

from mesh.policy.sequential import Excess

#: Latencies of neighbouring calls depend on each other: a pause of a process delays all of its calls.
LATENCY_POWER: Final = 0.5
#: Methods that are compared on their own, those with most calls first; the others count in the total only.
MOST_METHODS: Final = 50


class Verdict(Enum):
    """What to do with the new release."""

    HOLD = "hold"
    PROMOTE = "promote"
    ROLL_BACK = "roll_back"
    UNDECIDED = "undecided"


class Rules(NamedTuple):
    """What is compared, and how surely.

    Attributes:
        tolerance: the excess of the failure rate that is tolerated.
        margin: the excess that must be excluded before the share of calls is raised.
        slower: the excess of the share of calls beyond any bound of the histogram that is tolerated.
        confidence: of each verdict, 0 to 1, exclusive.
        step_s: the least time at each share.
        hold_s: the longest time at each share; then the release is undecided, and does not go further.
    """

    tolerance: float = 0.001
    margin: float = 0.02
    slower: float = 0.1
    confidence: float = 0.99
    step_s: float = 60.0
    hold_s: float = 600.0


class Calls(NamedTuple):
    """Calls that ended in one period.

    Attributes:
        failed: those that failed by a fault of the release; errors that a service declares are answers.
        buckets: all of them by duration; the last one is for those beyond all bounds.
    """

    calls: int = 0
    failed: int = 0
    buckets: tuple[int, ...] = ()

    def plus(self, other: Calls) -> Calls:
        """Both together."""
        if not self.buckets or not other.buckets:
            buckets = self.buckets or other.buckets
        else:
            buckets = tuple(a + b for a, b in zip(self.buckets, other.buckets, strict=True))
        return Calls(self.calls + other.calls, self.failed + other.failed, buckets)


class Found(NamedTuple):
    """A verdict, and the reason for it in words."""

    verdict: Verdict
    why: str = ""


class Judge:
    """The comparison of two releases, through all steps of the share.

    Args:
        bounds: the upper bounds of the histogram's buckets, in seconds.
    """

    def __init__(self, rules: Rules, bounds: Sequence[float]) -> None:
        self._rules = rules
        self._bounds = tuple(bounds)
        self._worse = Excess(rules.tolerance)
        self._method_worse: dict[str, Excess] = {}
        self._slower = [Excess(rules.slower, power=LATENCY_POWER) for _ in self._bounds]
        # The same hypothesis about successes: their rate is lower by at least `margin`.
        self._harmless = Excess(-rules.margin, prior=0.99)
        #: Everything that was observed, of the old and of the new release.
        self.old = Calls()
        self.new = Calls()

    def expect(self, old: Calls, methods: Mapping[str, Calls]) -> None:
        """What the old release did before the new one got its first call."""
        self._worse.expect(old.calls, old.failed)
        self._harmless.expect(old.calls, old.calls - old.failed)
        for test, (_, slow) in zip(self._slower, self._slow(Calls(), old), strict=True):
            test.expect(old.calls, slow)
        for name, calls in sorted(methods.items(), key=lambda each: -each[1].calls):
            if (test_of_method := self._of(name)) is not None:
                test_of_method.expect(calls.calls, calls.failed)

    def observe(self, old: Calls, new: Calls, methods: Mapping[str, tuple[Calls, Calls]]) -> None:
        """The calls of one period.

        Args:
            old, new: all calls, in the same mixture of methods: those that a draw distributed.
            methods: (old, new) of each method; calls that were mirrored may be among them.
        """
        self.old, self.new = self.old.plus(old), self.new.plus(new)
        self._worse.add(new.calls, new.failed, old.calls, old.failed)
        self._harmless.add(new.calls, new.calls - new.failed, old.calls, old.calls - old.failed)
        for test, (new_slow, old_slow) in zip(self._slower, self._slow(new, old), strict=True):
            test.add(new.calls, new_slow, old.calls, old_slow)
        for name, (old_calls, new_calls) in methods.items():
            if (one := self._of(name)) is not None:
                one.add(new_calls.calls, new_calls.failed, old_calls.calls, old_calls.failed)

    def raise_share(self) -> None:
        """The share was raised: that the new release is harmless must be shown again."""
        self._harmless.restart()

    def verdict(self, passed_s: float) -> Found:
        """What follows from everything that was observed.

        Args:
            passed_s: how long the new release has had its present share.
        """
        # Both alarms together have the probability of a false alarm that the rules allow.
        enough = 2 / (1 - self._rules.confidence)
        if self.errors >= enough:
            return Found(Verdict.ROLL_BACK, f"more errors: {self._shown()}")
        if self.latency >= enough:
            return Found(Verdict.ROLL_BACK, f"slower: {self._slowest()}")
        if passed_s >= self._rules.step_s and self.harmless >= 1 / (1 - self._rules.confidence):
            return Found(Verdict.PROMOTE)
        if passed_s >= self._rules.hold_s:
            return Found(
                Verdict.UNDECIDED,
                f"undecided after {passed_s:.0f} s: {self._shown()}; more calls, a larger share or a larger margin are "
                "needed",
            )
        return Found(Verdict.HOLD)

    @property
    def errors(self) -> float:
        """The evidence for more errors: half of it from all calls, half from single methods."""
        # 1/2, 1/6, 1/12 …: together at most 1, so the sum is an e-process; the busiest methods come first.
        single = sum(test.evidence / (n * (n + 1)) for n, test in enumerate(self._method_worse.values(), 1))
        return (self._worse.evidence + single) / 2

    @property
    def latency(self) -> float:
        """The evidence for slower answers."""
        return sum(test.evidence for test in self._slower) / len(self._slower) if self._slower else 1.0

    @property
    def harmless(self) -> float:
        """The evidence that the failure rate exceeds that of the old release by less than the margin."""
        return self._harmless.evidence

    # --- inside -------------------------------------------------------------------------------------------

    def _of(self, method: str) -> Excess | None:
        known = self._method_worse
        if method not in known and len(known) < MOST_METHODS:
            known[method] = Excess(self._rules.tolerance)
        return known.get(method)

    def _slow(self, new: Calls, old: Calls) -> list[tuple[int, int]]:
        """How many calls of each took longer than each bound."""
        return [(sum(new.buckets[n:]), sum(old.buckets[n:])) for n in range(1, len(self._bounds) + 1)]

    def _shown(self) -> str:
        worst = max(self._method_worse, key=lambda name: self._method_worse[name].evidence, default="")
        where = f", most of all {worst}" if worst and self._method_worse[worst].evidence > self._worse.evidence else ""
        return (
            f"{self.new.failed} of {self.new.calls} calls failed, of the old release {self.old.failed} of "
            f"{self.old.calls}{where}"
        )

    def _slowest(self) -> str:
        place = max(range(len(self._slower)), key=lambda n: self._slower[n].evidence)
        new, old = self._slow(self.new, self.old)[place]
        return (
            f"{new / max(1, self.new.calls):.1%} of the calls took more than {self._bounds[place] * 1000:g} ms, "
            f"of the old release {old / max(1, self.old.calls):.1%}"
        )


def steps(text: str, first: float | None = None) -> tuple[float, ...]:
    """The shares, as fractions in rising order, without the last one (all calls).

    Args:
        text: percentages, such as "5,25,50,100"; a "%" after a number is allowed.
        first: the share to begin with; smaller ones of `text` are left out.

    Raises:
        ValueError: a share is no number above 0 and up to 100, or the shares do not rise.
    """
    shares = [percentage(part) for part in text.split(",")]
    if any(b <= a for a, b in pairwise(shares)):
        raise ValueError(f"{text!r}: the shares must rise")
    if first is not None:
        shares = [first, *(each for each in shares if each > first)]
    return tuple(each for each in shares if each < 1)


def percentage(text: str) -> float:
    """A fraction from "5%" or "5".

    Raises:
        ValueError: it is no number above 0 and up to 100.
    """
    try:
        value = float(text.strip().removesuffix("%"))
    except ValueError:
        raise ValueError(f"{text!r} is not a percentage such as 5%") from None
    if not 0 < value <= 100:
        raise ValueError(f"{text!r} is not a percentage above 0 and up to 100")
    return value / 100
