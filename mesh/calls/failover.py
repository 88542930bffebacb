"""What to do with a call that one instance did not answer: the promise of architecture.md as a table.

Owns: the decision. Leaves to others: carrying it out (client), the budget (policy.budget).
"""

from __future__ import annotations

from enum import Enum, auto


class Trouble(Enum):
    """What went wrong with one attempt."""

    DRAINING = auto()  # refused: the instance is leaving
    NOT_HERE = auto()  # refused: another instance of the service may do what this one does not
    OVERLOADED = auto()  # refused: it has enough to do
    UNSENT = auto()  # the link broke before the call was handed to the socket
    LOST = auto()  # the link broke after it: the handler may have run
    FAILED = auto()  # the handler ran and raised, or the request itself is wrong


class Verdict(Enum):
    """What follows."""

    ELSEWHERE = auto()  # it surely never started: another instance, for free
    BUDGETED = auto()  # another instance, if the retry budget allows
    FAIL = auto()


#: (trouble, declared idempotent) -> verdict.
FAILOVER: dict[tuple[Trouble, bool], Verdict] = {
    (Trouble.DRAINING, False): Verdict.ELSEWHERE,
    (Trouble.DRAINING, True): Verdict.ELSEWHERE,
    (Trouble.NOT_HERE, False): Verdict.ELSEWHERE,
    (Trouble.NOT_HERE, True): Verdict.ELSEWHERE,
    # Nothing ran, but asking on and on would double the load of a service that has too much already.
    (Trouble.OVERLOADED, False): Verdict.BUDGETED,
    (Trouble.OVERLOADED, True): Verdict.BUDGETED,
    (Trouble.UNSENT, False): Verdict.ELSEWHERE,
    (Trouble.UNSENT, True): Verdict.ELSEWHERE,
    (Trouble.LOST, False): Verdict.FAIL,
    (Trouble.LOST, True): Verdict.BUDGETED,
    (Trouble.FAILED, False): Verdict.FAIL,
    (Trouble.FAILED, True): Verdict.FAIL,
}


#: Codes of a `refused` message that speak of the instance and not of the request.
REFUSALS: dict[str, Trouble] = {
    "draining": Trouble.DRAINING,
    "overloaded": Trouble.OVERLOADED,
    "unavailable": Trouble.NOT_HERE,
}
