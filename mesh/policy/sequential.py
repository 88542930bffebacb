"""A sequential test for the difference of two failure rates, which stays valid when it is read after every batch.

Owns: the e-process of one comparison. Leaves to others: what is compared, and what follows from it (canary).

A test with a fixed sample size that is repeated every second finds a difference sooner or later, even between equal
releases. An e-process does not: while its hypothesis is true, it exceeds 1/α with a probability of at most α, however
often and for however long it is read (Ville's inequality).

The hypothesis is `rate(a) - rate(b) <= most`. For a batch of n_a and n_b calls, the e-value is the likelihood of the
batch under an assumed alternative (p_a, p_b), divided by the likelihood under the point (q_a, q_b) of the hypothesis
that is nearest to the alternative. The alternative is chosen before the batch is seen: p_b is the recent rate of b, and
p_a exceeds p_b + most by one of GAPS. The process is the mean over the gaps of the products of their e-values. Rates
may change from batch to batch: an outage that hits both sides is no evidence.

Sources: Turner, Ly, Grünwald, "Generic E-variables for Exact Sequential k-Sample Tests that allow for Optional
Stopping", 2024; Turner, Grünwald, "Exact Anytime-valid Confidence Intervals for Contingency Tables and Beyond", 2023.
"""

from __future__ import annotations

from math import exp, log
from typing import Final

#: The assumed excesses over the hypothesis: from a small regression to a release that fails every call.
GAPS: Final = (0.005, 0.01, 0.02, 0.05, 0.12, 0.3, 0.7)
#: Assumed rates stay within these limits, so that no single call decides.
LEAST: Final = 0.000_5
#: Rates of a hypothesis stay off 0 and 1, where logarithms end.
EDGE: Final = 1e-12
#: The weight of the assumed rate of b, in calls.
PRIOR_CALLS: Final = 20.0
#: The weight of the past of b at each batch: with one batch a second, half of what is known is 35 s old.
MEMORY: Final = 0.98
#: Batches between the beginnings of two processes, and how many processes are kept: the first and
#: the youngest ones.
RESTART: Final = 15
MOST_PROCESSES: Final = 10
#: Larger logarithms are not told apart.
LARGEST: Final = 300.0


class Excess:
    """The evidence against `rate(a) - rate(b) <= most`.

    A difference that begins late would have to outweigh all the evidence for equality before it. So another process
    begins every RESTART batches, and the evidence is a weighted sum of them; with weights that add up to 1, it is an
    e-process, too.

    Args:
        most: the largest difference of the hypothesis; from -1 to 1, exclusive.
        prior: the rate of b that is assumed before anything is known.
        power: e-values are raised to this power, at most 1. Less than 1 allows for calls that are not independent of
            their neighbours; the process stays valid (Jensen's inequality), and needs more calls.

    Raises:
        ValueError: `most` or `power` is out of range.
    """

    __slots__ = ("_batches", "_calls", "_failed", "_most", "_power", "_processes", "_started")

    def __init__(self, most: float, *, prior: float = 0.01, power: float = 1.0) -> None:
        if not -1 < most < 1:
            raise ValueError(f"most: {most!r} is not between -1 and 1")
        if not 0 < power <= 1:
            raise ValueError(f"power: {power!r} is not above 0 and at most 1")
        self._most = most
        self._power = power
        self._calls = PRIOR_CALLS
        self._failed = prior * PRIOR_CALLS
        self._batches = 0
        self._started = 0
        #: (weight, the logarithm of the component of each gap).
        self._processes: list[tuple[float, list[float]]] = []
        self._start()

    def expect(self, calls: float, failed: float) -> None:
        """What b did before the comparison began."""
        if calls:
            self._calls = self._calls * MEMORY + calls
            self._failed = self._failed * MEMORY + failed

    def restart(self) -> None:
        """Forget the evidence, and keep what is known about b."""
        self._batches = self._started = 0
        self._processes.clear()
        self._start()

    def add(self, calls_a: int, failed_a: int, calls_b: int, failed_b: int) -> None:
        """One batch: the calls of both sides in the same period, and how many of them failed."""
        if calls_a and calls_b:
            if self._batches and self._batches % RESTART == 0:
                self._start()
            self._batches += 1
            rate = min(max(self._failed / self._calls, LEAST), 1 - LEAST)
            for place, gap in enumerate(GAPS):
                supposed = min(max(rate + self._most + gap, LEAST), 1 - LEAST)
                value = self._power * e_value(supposed, rate, self._most, calls_a, failed_a, calls_b, failed_b)
                for _, logs in self._processes:
                    logs[place] += value
        self.expect(calls_b, failed_b)

    @property
    def evidence(self) -> float:
        """The e-process: about 1 or less says nothing; 100 or more occurs with a probability of at most 1 % under the
        hypothesis."""
        return sum(
            weight * sum(exp(min(each, LARGEST)) for each in logs) / len(GAPS) for weight, logs in self._processes
        )

    def _start(self) -> None:
        self._started += 1
        # 1/2, 1/6, 1/12 …: the sum of all of them is 1.
        if len(self._processes) >= MOST_PROCESSES:
            del self._processes[1]
        self._processes.append((1 / (self._started * (self._started + 1)), [0.0] * len(GAPS)))


def e_value(
    rate_a: float, rate_b: float, most: float, calls_a: int, failed_a: int, calls_b: int, failed_b: int
) -> float:
    """The logarithm of the e-value of one batch, for the alternative (rate_a, rate_b)."""
    if rate_a - rate_b <= most:
        return 0.0  # the alternative is part of the hypothesis
    null_b = nearest(rate_a, rate_b, most, calls_a, calls_b)
    null_a = null_b + most
    return (
        failed_a * log(rate_a / null_a)
        + (calls_a - failed_a) * log((1 - rate_a) / (1 - null_a))
        + failed_b * log(rate_b / null_b)
        + (calls_b - failed_b) * log((1 - rate_b) / (1 - null_b))
    )


def nearest(rate_a: float, rate_b: float, most: float, calls_a: int, calls_b: int) -> float:
    """The rate of b at the point of the hypothesis that is nearest to the alternative.

    It minimizes calls_a·KL(rate_a ‖ t + most) + calls_b·KL(rate_b ‖ t), which is convex in t: Newton's method, with a
    bisection wherever a step leaves the interval that is left.
    """
    if not most:
        return (calls_a * rate_a + calls_b * rate_b) / (calls_a + calls_b)
    # The minimum lies between the point where b fits and the point where a fits.
    low, high = max(rate_b, EDGE - most), min(rate_a - most, 1 - most - EDGE)
    low, high = min(max(low, EDGE), 1 - EDGE), min(max(high, EDGE), 1 - EDGE)
    if high <= low:
        return low
    t = (calls_a * high + calls_b * low) / (calls_a + calls_b)
    for _ in range(40):
        s = t + most
        slope = calls_a * (s - rate_a) / (s * (1 - s)) + calls_b * (t - rate_b) / (t * (1 - t))
        bend = calls_a * (rate_a / s**2 + (1 - rate_a) / (1 - s) ** 2)
        bend += calls_b * (rate_b / t**2 + (1 - rate_b) / (1 - t) ** 2)
        step = slope / bend
        if abs(step) < 1e-13:
            break
        if slope > 0:
            high = t
        else:
            low = t
        t = t - step if low < t - step < high else (low + high) / 2
    return t
