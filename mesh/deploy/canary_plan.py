"""The plan of a canary roll, what it reports, and how many canaries a share needs.

Owns: these records and calculations. Leaves to others: carrying out the plan (canary_steps).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from mesh.deploy.error_gate import Limits
from mesh.deploy.roll import RollFailed
from mesh.policy.canary import Calls, Rules


class CanaryRejected(RollFailed):
    """The new release is worse than the old one, or too few calls showed that it is not; it was rolled back.

    `details` hold the reason, the share at that moment, and the calls of both releases.
    """

    code = "canary_rejected"


class Plan(NamedTuple):
    """How a canary roll proceeds.

    Attributes:
        shares: the shares of calls, as fractions in rising order; after the last one, all calls follow. Empty when
            calls are only mirrored.
        rules: of the verdict.
        mirror: the part of the calls that is copied to the canaries.
        methods: methods that may be copied although they change something.
        faults: codes of declared errors that count as failures.
        every_s: the period of the samples.
        patience_s: how long one process may take to become ready.
        settle_s: how long it must then stay up.
        gate: of the roll of the regular copies.
    """

    shares: tuple[float, ...]
    rules: Rules = Rules()
    mirror: float = 0.0
    methods: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    every_s: float = 2.0
    patience_s: float = 30.0
    settle_s: float = 1.0
    gate: Limits = Limits()


class CanarySample(NamedTuple):
    """One sample of a canary roll.

    Attributes:
        at_s: seconds since the first share.
        share: the share of calls of the canaries, 0.0 to 1.0.
        old, new: calls that ended since the last sample.
        worse, slower, harmless: how near each finding is: 0.0 for no evidence, 1.0 for found.
        mirrored: compared copies so far, by result.
        verdict: "hold", "promote", "roll_back" or "undecided".
    """

    at_s: float
    share: float
    canaries: int
    old: Calls
    new: Calls
    worse: float
    slower: float
    harmless: float
    mirrored: dict[str, int]
    verdict: str


class Promoted(NamedTuple):
    """The result of a canary roll.

    Attributes:
        replaced: how many regular copies run the new release now; 0 when calls were only mirrored.
        old, new: the calls of both releases during the comparison.
        mirrored: compared copies, by result.
    """

    name: str
    replaced: int
    seconds: float
    old: Calls
    new: Calls
    mirrored: dict[str, int]


def capped(shares: Sequence[float], most: float) -> tuple[float, ...]:
    """The shares up to that of this host's copies. When there are other hosts, the last one is observed as well."""
    below = tuple(each for each in shares if each < most)
    return below + ((most,) if shares and most < 1.0 else ())


def copies(share: float, everywhere: int, here: int) -> int:
    """How many canaries a share needs, so that each answers about as many calls as a regular copy.

    Args:
        everywhere, here: regular copies, on all hosts and on this one.
    """
    return min(here, max(1, math.ceil(share * max(everywhere, here) - 1e-9)))


def near(evidence: float, enough: float) -> float:
    """The evidence on a logarithmic scale from 0 (none) to 1 (enough)."""
    return min(1.0, max(0.0, math.log(max(evidence, 1e-9)) / math.log(enough)))
