"""What to do with a call that one instance did not answer: the failover table promised in architecture.md.

Owns: the decision. Leaves to others: carrying it out (client), the budget (policy.budget).
"""

from __future__ import annotations

from enum import Enum, auto


class Trouble(Enum):
    """What went wrong with one attempt."""

    DRAINING = auto()  # refused: the instance is leaving
    NOT_HERE = auto()  # refused: this instance cannot answer the call, another one of the service may
    OVERLOADED = auto()  # refused: the instance is at its limit
    UNSENT = auto()  # the link broke before the call was handed to the socket
    LOST = auto()  # the link broke after that: the handler may have run
    FAILED = auto()  # the handler ran and raised, or the request itself is wrong


class Verdict(Enum):
    """What the client does next."""

    ELSEWHERE = auto()  # the handler never started: try another instance, outside the retry budget
    BUDGETED = auto()  # another instance, if the retry budget allows
    FAIL = auto()


#: (trouble, declared idempotent) -> verdict.
FAILOVER: dict[tuple[Trouble, bool], Verdict] = {
    (Trouble.DRAINING, False): Verdict.ELSEWHERE,
    (Trouble.DRAINING, True): Verdict.ELSEWHERE,
    (Trouble.NOT_HERE, False): Verdict.ELSEWHERE,
    (Trouble.NOT_HERE, True): Verdict.ELSEWHERE,
    # Nothing ran, but unlimited retries would double the load of a service that is overloaded already.
    (Trouble.OVERLOADED, False): Verdict.BUDGETED,
    (Trouble.OVERLOADED, True): Verdict.BUDGETED,
    (Trouble.UNSENT, False): Verdict.ELSEWHERE,
    (Trouble.UNSENT, True): Verdict.ELSEWHERE,
    (Trouble.LOST, False): Verdict.FAIL,
    (Trouble.LOST, True): Verdict.BUDGETED,
    (Trouble.FAILED, False): Verdict.FAIL,
    (Trouble.FAILED, True): Verdict.FAIL,
}


#: Codes of a `refused` message that concern the instance and not the request.
REFUSALS: dict[str, Trouble] = {
    "draining": Trouble.DRAINING,
    "overloaded": Trouble.OVERLOADED,
    "unavailable": Trouble.NOT_HERE,
}
