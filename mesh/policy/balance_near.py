"""Which instances get the next call first: those on the caller's own host, while they are well.

Owns: what makes an instance less than well, and who comes first.
Leaves to others: which host an instance is on (discovery), whose link is open (pool), choosing among those that come
first (balance), counting what is in flight and what came in time (the caller).

The rule. Of the instances that can be called, those on the caller's host come first. One of them stands back

==========================  ============================================================  ============================
when                        how a caller knows                                            until
==========================  ============================================================  ============================
it leaves or is gone        its link: a goodbye, the end of the connection                it can be called again
it has no place left        its own calls in flight there have reached the places that    one of them is answered
                            the instance has, or the link its credit
it is busy with others'     the load that the registry tells of is `BUSY` or more         the load is below `AT_EASE`
it does not answer          `MISSES` of its calls in a row were not answered in time      it answers one
==========================  ============================================================  ============================

and when none is left, all instances of the service are alike: those at hand get what they can bear beside the others,
so that work which one host cannot do spreads, and one that did not answer is asked now and then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

T = TypeVar("T")

#: The share of its places from which an instance is busy. Hubs tell of a load when it has moved by more than a tenth
#: (discovery.registry.LOAD_STEP): one that rose from 0.9 to 1.0 is not heard of.
BUSY: Final = 0.9
#: It is at ease again below this. Far apart: what it gives away frees places at once, and would come back at once.
AT_EASE: Final = 0.6
#: One late answer may be one slow request, and two a pause; three in a row, and none in between, are news.
MISSES: Final = 3
#: The places of an instance that does not tell how many it has.
ANY: Final = 2**31 - 1


def busy(load: float, was: bool) -> bool:
    """Whether an instance is busy, at this load from the registry, when it was (or was not) busy before.

    Args:
        load: its calls in hand as a share of its places, 0.0 to 1.0.
    """
    return load >= (AT_EASE if was else BUSY)


def prefer(ready: Sequence[T], is_near: Callable[[T], bool]) -> Sequence[T]:
    """Those of `ready` that come first; `ready` itself, the same object, when it makes no difference.

    Args:
        is_near: whether one is on the caller's host, and well.
    """
    near = [each for each in ready if is_near(each)]
    return near if 0 < len(near) < len(ready) else ready


def has_place(in_flight: int, places: int) -> bool:
    """Whether an instance on which this caller has so many calls in flight can begin one more at once."""
    return in_flight < places
